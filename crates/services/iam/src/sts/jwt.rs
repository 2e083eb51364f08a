//! JSON Web Tokens: reading them, and checking their signatures with the keys of their issuer (RFC 7515, 7517, 7518, 7519).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A token whose signature has not been checked.
pub(super) struct Jwt<'a> {
    algorithm: String,
    pub key_id: Option<String>,
    pub claims: Map<String, Value>,
    signed: &'a str,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl<'a> Jwt<'a> {
    /// Reads a token; none if it is not a signed one whose every header parameter is understood.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        let claims = serde_json::from_slice(&decode(claims)?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        Some(Self {
            algorithm: header.alg,
            key_id: header.kid,
            claims,
            signed,
            signature: decode(signature)?,
        })
    }

    /// A claim that is text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    /// A claim that is a time, in seconds since 1970.
    pub fn time(&self, claim: &str) -> Option<i64> {
        let value = self.claims.get(claim)?;
        value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
    }

    /// A claim that is a text or a list of texts.
    pub fn texts(&self, claim: &str) -> Vec<String> {
        match self.claims.get(claim) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) => {
                list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether one of the keys made the signature.
    pub fn is_signed_by(&self, keys: &[Jwk]) -> bool {
        keys.iter().filter(|key| self.may_be_of(key)).any(|key| self.verify(key).unwrap_or(false))
    }

    /// Whether a key has the id that the token names.
    pub fn may_be_of(&self, key: &Jwk) -> bool {
        let is_meant = match (&self.key_id, &key.kid) {
            (Some(wanted), Some(own)) => wanted == own,
            _ => true,
        };
        is_meant && key.r#use.as_deref().is_none_or(|purpose| purpose == "sig")
    }

    fn verify(&self, key: &Jwk) -> Option<bool> {
        let decode = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        if key.alg.as_deref().is_some_and(|alg| alg != self.algorithm) {
            return Some(false);
        }
        let message = self.signed.as_bytes();
        let rsa = |parameters: &'static RsaParameters| {
            let key = RsaPublicKeyComponents { n: decode(&key.n)?, e: decode(&key.e)? };
            Some(key.verify(parameters, message, &self.signature).is_ok())
        };
        let ecdsa = |parameters: &'static ring::signature::EcdsaVerificationAlgorithm, size: usize| {
            let (x, y) = (decode(&key.x)?, decode(&key.y)?);
            if x.len() != size || y.len() != size {
                return None;
            }
            let point = [&[4], &x[..], &y].concat();
            Some(UnparsedPublicKey::new(parameters, point).verify(message, &self.signature).is_ok())
        };
        match (self.algorithm.as_str(), key.kty.as_str(), key.crv.as_deref()) {
            ("RS256", "RSA", _) => rsa(&RSA_PKCS1_2048_8192_SHA256),
            ("RS384", "RSA", _) => rsa(&RSA_PKCS1_2048_8192_SHA384),
            ("RS512", "RSA", _) => rsa(&RSA_PKCS1_2048_8192_SHA512),
            ("ES256", "EC", Some("P-256")) => ecdsa(&ECDSA_P256_SHA256_FIXED, 32),
            ("ES384", "EC", Some("P-384")) => ecdsa(&ECDSA_P384_SHA384_FIXED, 48),
            _ => Some(false),
        }
    }
}

/// A public key of an issuer.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendix A.3: a token and the key that signed it with ES256.
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    const KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    /// RFC 7515, appendix A.2: with RS256.
    const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const RSA_KEY: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;

    fn key(text: &str) -> Vec<Jwk> {
        vec![serde_json::from_str(text).unwrap()]
    }

    #[test]
    fn the_examples_of_the_standard_are_signed() {
        for (token, good, bad) in [(TOKEN, KEY, RSA_KEY), (RSA_TOKEN, RSA_KEY, KEY)] {
            let jwt = Jwt::parse(token).unwrap();
            assert_eq!((jwt.text("iss"), jwt.time("exp")), (Some("joe"), Some(1_300_819_380)));
            assert!(jwt.is_signed_by(&key(good)));
            assert!(!jwt.is_signed_by(&key(bad)));
            assert!(!jwt.is_signed_by(&[]));
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let changed = format!("{}.{signature}", signed.replace("eyJpc3Mi", "eyJpc3Mj"));
            assert!(Jwt::parse(&changed).is_none_or(|jwt| !jwt.is_signed_by(&key(good))));
        }
    }

    #[test]
    fn what_a_key_is_for_counts() {
        let jwt = Jwt::parse(RSA_TOKEN).unwrap();
        let with = |member: &str| key(&RSA_KEY.replacen('{', &format!("{{{member},"), 1));
        assert!(jwt.is_signed_by(&with(r#""kid":"a","use":"sig","alg":"RS256""#)));
        assert!(!jwt.is_signed_by(&with(r#""use":"enc""#)));
        assert!(!jwt.is_signed_by(&with(r#""alg":"RS512""#)));
    }

    #[test]
    fn what_is_no_signed_token_is_none() {
        let header = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for text in [
            String::new(),
            "a.b".into(),
            "..".into(),
            "a.b.c".into(),
            format!("{}.{}.", header("[]"), header("{}")),
            format!("{}.{}.", header(r#"{"alg":"RS256","crit":["exp"]}"#), header("{}")),
        ] {
            assert!(Jwt::parse(&text).is_none(), "{text}");
        }
        let none = format!("{}.{}.", header(r#"{"alg":"none"}"#), header("{}"));
        assert!(!Jwt::parse(&none).unwrap().is_signed_by(&key(RSA_KEY)));
    }
}
