//! The cryptographic half of key pairs: generation, import, fingerprints and the file formats of private keys.
//!
//! Formats: PKCS#1 (RFC 8017), OpenSSH (`PROTOCOL.key`), PuTTY's PPK version 2 (appendix C of its manual), RFC 4716 and
//! SubjectPublicKeyInfo (RFC 5280, RFC 8410). Fingerprints: "Verify the fingerprint of your key pair" of the Amazon EC2 User
//! Guide.

use base64::{Engine, engine::general_purpose::STANDARD};
use getrandom::SysRng;
use haar_records::ec2::KeyType;
use hmac::{Hmac, Mac};
use md5::Md5;
use rsa::{
    pkcs1::{EncodeRsaPrivateKey, RsaPrivateKeyRef},
    pkcs8::{
        DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding, der::Decode,
        spki::SubjectPublicKeyInfoRef,
    },
    rand_core::TryRng,
    traits::PublicKeyParts,
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ssh_key::{
    Mpint,
    private::Ed25519Keypair,
    public::{Ed25519PublicKey, KeyData, RsaPublicKey},
};

/// Bits of the RSA keys that CreateKeyPair makes.
const RSA_BITS: usize = 2048;

/// Bits of the RSA keys that ImportKeyPair takes. The User Guide lists 1024, 2048 and 4096; 3072 is what `ssh-keygen` makes unasked, and
/// EC2 takes it as well.
const IMPORTED_RSA_BITS: [u32; 4] = [1024, 2048, 3072, 4096];

/// Most bytes of an imported key, as EC2 has it.
pub const MAX_PUBLIC_KEY_MATERIAL: usize = 2048;

/// The file format of a private key (`KeyFormat` in the API reference).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateKeyFormat {
    /// PKCS#1 for RSA, OpenSSH's own for Ed25519.
    Pem,
    /// PuTTY's.
    Ppk,
}

/// The public half of a key pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Type.
    pub key_type: KeyType,
    /// OpenSSH's one-line form, the key pair's name as comment.
    pub openssh: String,
    /// Fingerprint in the form that EC2 gives for the key's type and origin.
    pub fingerprint: String,
}

/// A new key pair.
pub struct KeyPairMaterial {
    /// The public half.
    pub public: PublicKey,
    /// The private half, as a file in the format that was asked for.
    pub private: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The imported material is none of the formats, or a kind or length of key that EC2 does not take.
    #[error("Key is not in valid OpenSSH public key format")]
    Format,
    /// The operating system gave no random bytes, or the key could not be encoded.
    #[error("the key could not be made: {0}")]
    Generation(String),
}

/// Makes a key pair. An RSA key takes the processor for a good part of a second: call it off the async runtime's threads.
///
/// # Errors
/// [`KeyError::Generation`].
pub fn generate(
    key_type: KeyType,
    format: PrivateKeyFormat,
    name: &str,
) -> Result<KeyPairMaterial, KeyError> {
    match key_type {
        KeyType::Rsa => {
            let key = rsa::PrivateKey::new(&mut SysRng, RSA_BITS).map_err(generation)?;
            rsa_pair(&key, format, name)
        }
        KeyType::Ed25519 => {
            let mut seed = [0; 32];
            SysRng.try_fill_bytes(&mut seed).map_err(generation)?;
            ed25519_pair(&Ed25519Keypair::from_seed(&seed), format, name)
        }
    }
}

fn generation(error: impl std::fmt::Display) -> KeyError {
    KeyError::Generation(error.to_string())
}

fn rsa_pair(
    key: &rsa::PrivateKey,
    format: PrivateKeyFormat,
    name: &str,
) -> Result<KeyPairMaterial, KeyError> {
    let data = KeyData::Rsa(rsa_key_data(&key.to_public_key()).map_err(generation)?);
    let private = match format {
        PrivateKeyFormat::Pem => key.to_pkcs1_pem(LineEnding::LF).map_err(generation)?.to_string(),
        PrivateKeyFormat::Ppk => {
            let der = key.to_pkcs1_der().map_err(generation)?;
            let parts = RsaPrivateKeyRef::from_der(der.as_bytes()).map_err(generation)?;
            let mut blob = Vec::new();
            for part in [parts.private_exponent, parts.prime1, parts.prime2, parts.coefficient] {
                put_string(&mut blob, mpint(part.as_bytes()).map_err(generation)?.as_bytes());
            }
            ppk(data.clone(), &blob, name)?
        }
    };
    let pkcs8 = key.to_pkcs8_der().map_err(generation)?;
    let fingerprint = colons(&Sha1::digest(pkcs8.as_bytes()));
    let openssh = openssh(data, name).map_err(generation)?;
    Ok(KeyPairMaterial { public: PublicKey { key_type: KeyType::Rsa, openssh, fingerprint }, private })
}

fn ed25519_pair(
    key: &Ed25519Keypair,
    format: PrivateKeyFormat,
    name: &str,
) -> Result<KeyPairMaterial, KeyError> {
    let data = KeyData::Ed25519(key.public);
    let private = match format {
        PrivateKeyFormat::Pem => ssh_key::PrivateKey::new(key.clone().into(), "")
            .and_then(|key| key.to_openssh(ssh_key::LineEnding::LF))
            .map_err(generation)?
            .to_string(),
        PrivateKeyFormat::Ppk => {
            let mut blob = Vec::new();
            put_string(&mut blob, &key.private.to_bytes());
            ppk(data.clone(), &blob, name)?
        }
    };
    let fingerprint = ed25519_fingerprint(data.clone()).map_err(generation)?;
    let openssh = openssh(data, name).map_err(generation)?;
    Ok(KeyPairMaterial { public: PublicKey { key_type: KeyType::Ed25519, openssh, fingerprint }, private })
}

/// Reads a public key as ImportKeyPair takes it: OpenSSH's one line, the base64 of a SubjectPublicKeyInfo in DER, or RFC 4716.
///
/// # Errors
/// [`KeyError::Format`].
pub fn import(material: &[u8], name: &str) -> Result<PublicKey, KeyError> {
    let text = std::str::from_utf8(material).map_err(|_| KeyError::Format)?.trim();
    let data = if text.starts_with("---- BEGIN SSH2 PUBLIC KEY ----") {
        wire_key(&rfc4716_body(text)?)?
    } else if text.starts_with("ssh-") {
        // Exactly one line, and none of the options that an authorized_keys file may have before the key.
        if text.contains(['\n', '\r']) {
            return Err(KeyError::Format);
        }
        let mut fields = text.split([' ', '\t']).filter(|field| !field.is_empty());
        let algorithm = fields.next().ok_or(KeyError::Format)?;
        let data = wire_key(&decode(fields.next().ok_or(KeyError::Format)?)?)?;
        if data.algorithm().as_str() != algorithm {
            return Err(KeyError::Format);
        }
        data
    } else {
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        der_key(&decode(&compact)?)?
    };
    let (key_type, fingerprint) = match &data {
        KeyData::Rsa(key) => {
            let key = checked_rsa(key)?;
            let der = key.to_public_key_der().map_err(|_| KeyError::Format)?;
            (KeyType::Rsa, colons(&Md5::digest(der.as_bytes())))
        }
        KeyData::Ed25519(_) => {
            (KeyType::Ed25519, ed25519_fingerprint(data.clone()).map_err(|_| KeyError::Format)?)
        }
        _ => return Err(KeyError::Format),
    };
    Ok(PublicKey { key_type, openssh: openssh(data, name).map_err(|_| KeyError::Format)?, fingerprint })
}

fn decode(base64: &str) -> Result<Vec<u8>, KeyError> {
    STANDARD.decode(base64).map_err(|_| KeyError::Format)
}

/// The key of an SSH public key blob (RFC 4253, section 6.6).
fn wire_key(blob: &[u8]) -> Result<KeyData, KeyError> {
    Ok(ssh_key::PublicKey::from_bytes(blob).map_err(|_| KeyError::Format)?.key_data().clone())
}

/// The decoded body of an RFC 4716 file: header lines, which may be continued with a backslash, are left out.
fn rfc4716_body(text: &str) -> Result<Vec<u8>, KeyError> {
    let mut body = String::new();
    let mut continued = false;
    let mut lines = text.lines().map(str::trim_end).skip(1);
    for line in lines.by_ref() {
        if line == "---- END SSH2 PUBLIC KEY ----" {
            return if lines.next().is_none() { decode(&body) } else { Err(KeyError::Format) };
        }
        if continued || line.contains(':') {
            continued = line.ends_with('\\');
        } else {
            body.push_str(line.trim());
        }
    }
    Err(KeyError::Format)
}

/// The key of a SubjectPublicKeyInfo in DER.
fn der_key(der: &[u8]) -> Result<KeyData, KeyError> {
    if let Ok(key) = rsa::PublicKey::from_public_key_der(der) {
        return Ok(KeyData::Rsa(rsa_key_data(&key).map_err(|_| KeyError::Format)?));
    }
    let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::Format)?;
    // id-Ed25519 of RFC 8410, which allows no parameters.
    if info.algorithm.oid.to_string() != "1.3.101.112" || info.algorithm.parameters.is_some() {
        return Err(KeyError::Format);
    }
    let bits = info.subject_public_key.as_bytes().ok_or(KeyError::Format)?;
    Ok(KeyData::Ed25519(Ed25519PublicKey::try_from(bits).map_err(|_| KeyError::Format)?))
}

/// The RSA key, when it is one that makes sense and has a length that EC2 takes.
fn checked_rsa(key: &RsaPublicKey) -> Result<rsa::PublicKey, KeyError> {
    let number = |part: &Mpint| {
        let bytes = part.as_positive_bytes().ok_or(KeyError::Format)?;
        let bits = u32::try_from(bytes.len() * 8).map_err(|_| KeyError::Format)?;
        rsa::BoxedUint::from_be_slice(bytes, bits).map_err(|_| KeyError::Format)
    };
    let (n, e) = (number(&key.n)?, number(&key.e)?);
    if !IMPORTED_RSA_BITS.contains(&n.bit_width()) {
        return Err(KeyError::Format);
    }
    rsa::PublicKey::new(n, e).map_err(|_| KeyError::Format)
}

fn rsa_key_data(key: &rsa::PublicKey) -> ssh_key::Result<RsaPublicKey> {
    Ok(RsaPublicKey { e: mpint(&key.e_bytes())?, n: mpint(&key.n_bytes())? })
}

fn mpint(big_endian: &[u8]) -> ssh_key::Result<Mpint> {
    Mpint::from_positive_bytes(big_endian)
}

fn openssh(data: KeyData, name: &str) -> ssh_key::Result<String> {
    ssh_key::PublicKey::new(data, name).to_openssh()
}

/// The padded base64 of the SHA-256 of the key's SSH blob.
fn ed25519_fingerprint(data: KeyData) -> ssh_key::Result<String> {
    Ok(STANDARD.encode(Sha256::digest(ssh_key::PublicKey::from(data).to_bytes()?)))
}

/// Appends a `string` of RFC 4251, section 5.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and their names are short");
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

fn colons(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// An unencrypted PPK file, version 2, which every PuTTY reads.
fn ppk(public: KeyData, private_blob: &[u8], comment: &str) -> Result<String, KeyError> {
    use std::fmt::Write;

    let algorithm = public.algorithm();
    let public_blob = ssh_key::PublicKey::from(public).to_bytes().map_err(generation)?;
    let mut authenticated = Vec::new();
    for part in [algorithm.as_str().as_bytes(), b"none", comment.as_bytes(), &public_blob, private_blob] {
        put_string(&mut authenticated, part);
    }
    let mac_key = Sha1::digest(b"putty-private-key-file-mac-key");
    let mut mac = Hmac::<Sha1>::new_from_slice(&mac_key).map_err(generation)?;
    mac.update(&authenticated);

    let mut file = format!("PuTTY-User-Key-File-2: {algorithm}\nEncryption: none\nComment: {comment}\n");
    for (section, blob) in [("Public", public_blob.as_slice()), ("Private", private_blob)] {
        let base64 = STANDARD.encode(blob);
        let _ = writeln!(file, "{section}-Lines: {}", base64.len().div_ceil(64));
        // Base64 is ASCII: every position is a character boundary.
        for start in (0..base64.len()).step_by(64) {
            file.push_str(&base64[start..base64.len().min(start + 64)]);
            file.push('\n');
        }
    }
    let _ = writeln!(file, "Private-MAC: {}", hex::encode(mac.finalize().into_bytes()));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rsa::pkcs1::DecodeRsaPrivateKey;

    use super::*;

    macro_rules! testdata {
        ($name:literal) => {
            include_str!(concat!("../testdata/", $name))
        };
    }

    /// `openssl pkcs8 -topk8 -nocrypt -outform DER | openssl sha1 -c` of `rsa.pem`.
    const RSA_CREATED: &str = "af:fb:c1:85:2d:2d:7e:81:f0:e8:12:af:bb:9e:31:5d:55:a2:51:3b";
    /// `openssl rsa -pubout -outform DER | openssl md5 -c` of `rsa.pem`.
    const RSA_IMPORTED: &str = "c3:a9:73:35:13:fd:f7:c6:c4:7f:7a:09:60:0a:fd:c4";
    /// `ssh-keygen -l` of `ed25519.pub`, padded.
    const ED25519: &str = "fISfRj3UWSNc0a4Eh3t5mGwFh+8sOIFMKvWgfRdyQ0M=";

    #[test]
    fn rsa_files_are_what_openssl_and_puttygen_write() {
        let key = rsa::PrivateKey::from_pkcs1_pem(testdata!("rsa.pem")).unwrap();
        let pem = rsa_pair(&key, PrivateKeyFormat::Pem, "my key").unwrap();
        assert_eq!(pem.private, testdata!("rsa.pem"));
        assert_eq!(pem.public.openssh, testdata!("rsa.pub").trim_end());
        assert_eq!(pem.public.fingerprint, RSA_CREATED);
        let ppk = rsa_pair(&key, PrivateKeyFormat::Ppk, "my key").unwrap();
        assert_eq!(ppk.private, testdata!("rsa.ppk"));
        assert_eq!(ppk.public, pem.public);
    }

    #[test]
    fn ed25519_files_are_what_ssh_keygen_and_puttygen_write() {
        let key = ssh_key::PrivateKey::from_openssh(testdata!("ed25519.pem")).unwrap();
        let pair = key.key_data().ed25519().unwrap();
        let ppk = ed25519_pair(pair, PrivateKeyFormat::Ppk, "my key").unwrap();
        assert_eq!(ppk.private, testdata!("ed25519.ppk"));
        assert_eq!(ppk.public.openssh, testdata!("ed25519.pub").trim_end());
        assert_eq!(ppk.public.fingerprint, ED25519);
        let pem = ed25519_pair(pair, PrivateKeyFormat::Pem, "my key").unwrap();
        let read = ssh_key::PrivateKey::from_openssh(&pem.private).unwrap();
        assert_eq!(read.key_data(), key.key_data());
    }

    #[test]
    fn generated_keys_differ_and_import_as_themselves() {
        for key_type in [KeyType::Rsa, KeyType::Ed25519] {
            let [one, two] = [(); 2].map(|()| generate(key_type, PrivateKeyFormat::Pem, "k").unwrap());
            assert_ne!(one.private, two.private);
            let imported = import(one.public.openssh.as_bytes(), "k").unwrap();
            assert_eq!((imported.key_type, &imported.openssh), (key_type, &one.public.openssh));
        }
        let rsa = generate(KeyType::Rsa, PrivateKeyFormat::Pem, "k").unwrap();
        let key = rsa::PrivateKey::from_pkcs1_pem(&rsa.private).unwrap();
        key.validate().unwrap();
        assert_eq!(key.size() * 8, RSA_BITS);
    }

    #[test]
    fn every_import_format_gives_the_same_key() {
        let rsa = [testdata!("rsa.pub"), testdata!("rsa.der.b64"), testdata!("rsa.rfc4716")];
        let ed25519 = [testdata!("ed25519.pub"), testdata!("ed25519.der.b64"), testdata!("ed25519.rfc4716")];
        for (files, key_type, fingerprint) in
            [(rsa, KeyType::Rsa, RSA_IMPORTED), (ed25519, KeyType::Ed25519, ED25519)]
        {
            let openssh = files[0].trim_end().to_owned();
            let expected = PublicKey { key_type, openssh, fingerprint: fingerprint.into() };
            for file in files {
                assert_eq!(import(file.as_bytes(), "my key").unwrap(), expected, "{file}");
            }
        }
        let wrapped = testdata!("rsa.der.b64").as_bytes().chunks(64).collect::<Vec<_>>().join(&b'\n');
        assert_eq!(import(&wrapped, "k").unwrap().fingerprint, RSA_IMPORTED);
        let headers = testdata!("rsa.rfc4716")
            .replace("Comment: ", "Subject: me\nx-long: a \\\nfolded header\nComment: ");
        assert_eq!(import(headers.as_bytes(), "k").unwrap().fingerprint, RSA_IMPORTED);
        let commentless = testdata!("rsa.pub").rsplit_once(" my key").unwrap().0;
        assert_eq!(import(commentless.as_bytes(), "k").unwrap().fingerprint, RSA_IMPORTED);
    }

    #[test]
    fn what_is_no_key_of_ec2_is_refused() {
        let rsa = testdata!("rsa.pub");
        let unended = testdata!("rsa.rfc4716").replace("---- END", "---- NO END");
        let mislabelled = rsa.replace("ssh-rsa", "ssh-ed25519");
        let cases: [&[u8]; 14] = [
            b"",
            b"ssh-rsa",
            b"ssh-rsa AAAA",
            b"not a key",
            b"\xff\xfe",
            testdata!("ecdsa.pub").as_bytes(),
            testdata!("rsa1536.pub").as_bytes(),
            testdata!("rsa.pem").as_bytes(),
            &[rsa.as_bytes(), rsa.as_bytes()].concat(),
            &[b"command=\"true\" ", rsa.as_bytes()].concat(),
            mislabelled.as_bytes(),
            &rsa.as_bytes()[..200],
            unended.as_bytes(),
            // Cut short.
            &testdata!("rsa.der.b64").as_bytes()[..388],
        ];
        for case in cases {
            assert!(matches!(import(case, "k"), Err(KeyError::Format)), "{}", String::from_utf8_lossy(case));
        }
    }

    #[test]
    fn numbers_that_make_no_rsa_key_are_refused() {
        let line = |e: &[u8], n: &[u8]| {
            let mut blob = Vec::new();
            for part in [b"ssh-rsa".as_slice(), e, n] {
                put_string(&mut blob, part);
            }
            format!("ssh-rsa {}", STANDARD.encode(blob)).into_bytes()
        };
        // 2048 bits, odd and even; the leading zero says that it is not negative.
        let odd = [&[0, 0x80][..], &[0; 254], &[1]].concat();
        let even = [&[0, 0x80][..], &[0; 254], &[2]].concat();
        let f4: &[u8] = &[1, 0, 1];
        for (e, n) in [
            (f4, even.as_slice()),
            (f4, &[]),
            (f4, &[0]),
            (f4, &odd[1..]),
            (&[], &odd),
            (&[0], &odd),
            (&[1], &odd),
            (&[2], &odd),
            (&[0x7f; 64], &odd),
            (&odd, f4),
        ] {
            assert!(matches!(import(&line(e, n), "k"), Err(KeyError::Format)), "e = {e:?}, n = {n:?}");
        }
        // As a modulus this one is accepted: whether it is hard to factor is its owner's business.
        assert!(import(&line(f4, &odd), "k").is_ok());
    }
}
