//! What is fuzzed: everything that reads what clients send, or writes it back.
//!
//! A target is a function of bytes that panics when something is wrong. `cargo test` runs all of them for a bounded number of
//! inputs (`tests/run.rs`); `cargo fuzz run NAME` in `fuzz/` lets libFuzzer look for more.

use bytes::Bytes;
use haar_api::schema::{Protocol, ServiceModel};
use haar_api::sigv4::{Secret, Signature, Signer};
use haar_api::value::Value;
use haar_api::{Error, endpoint, json, xml};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri};
use time::OffsetDateTime;

pub mod generate;
pub mod mutate;

/// What is called with an input.
pub type Target = fn(&[u8]);

/// Every target, by the name of its file in `fuzz/fuzz_targets`.
pub const TARGETS: &[(&str, Target)] =
    &[("form", form), ("json", json_bodies), ("rest", rest), ("signature", signature), ("text", text)];

/// A request's head.
pub fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut builder = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).expect("the parts are valid").into_parts().0
}

/// Decodes a request; whatever it is, the answer is a value or an error that is the caller's fault.
pub fn decode(model: &'static ServiceModel, parts: &Parts, body: &[u8]) -> Result<(usize, Value), Error> {
    let decoded = endpoint::decode(model, parts, Bytes::copy_from_slice(body));
    match &decoded {
        Ok((operation, _)) => assert!(*operation < model.operations.len()),
        Err(error) => {
            assert!(error.status.is_client_error(), "{error}");
            assert!(!error.code.is_empty() && !error.message.is_empty(), "{error}");
            // A message repeats what the client sent only in part.
            assert!(error.message.len() < 4096, "{} bytes of message", error.message.len());
        }
    }
    decoded
}

/// Bodies of the `ec2` and `query` protocols, whole and as the parameters of an operation; as query strings, too.
pub fn form(data: &[u8]) {
    for model in [&haar_echo::ec2::MODEL, &haar_echo::query::MODEL] {
        let root = head("POST", "/", &[]);
        let _ = decode(model, &root, data);
        for action in ["Echo", "Check", "Once"] {
            let mut body = format!("Action={action}&").into_bytes();
            body.extend_from_slice(data);
            let _ = decode(model, &root, &body);
        }
        let uri = [b"/?Action=Echo&", data].concat();
        if let Ok(uri) = Uri::try_from(uri) {
            let mut get = head("GET", "/", &[]);
            get.uri = uri;
            let _ = decode(model, &get, b"");
        }
    }
}

/// Bodies of the `json` protocol, for several operations.
pub fn json_bodies(data: &[u8]) {
    for (model, prefix) in
        [(&haar_echo::json10::MODEL, "EchoJson10_20260101"), (&haar_echo::json11::MODEL, "EchoJson11")]
    {
        for operation in ["Echo", "Check", "Once", "Nothing"] {
            let parts = head("POST", "/", &[("x-amz-target", &format!("{prefix}.{operation}"))]);
            let _ = decode(model, &parts, data);
        }
    }
    let target = HeaderValue::from_bytes(data.split(|byte| *byte == b'\n').next().unwrap_or_default());
    if let Ok(target) = target {
        let mut parts = head("POST", "/", &[]);
        parts.headers.insert("x-amz-target", target);
        let _ = decode(&haar_echo::json11::MODEL, &parts, b"{}");
    }
}

/// Requests written as text: a line `METHOD target`, lines `Name: value`, an empty line, the body.
pub fn rest(data: &[u8]) {
    if let Some((parts, body)) = parse(data) {
        let _ = decode(&haar_echo::rest::MODEL, &parts, body);
    }
}

/// Requests as [`rest`] reads them, for their signatures. None can be right: nobody knows the secret.
pub fn signature(data: &[u8]) {
    let Some((parts, body)) = parse(data) else { return };
    let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(16_677);
    if let Ok(signature) = Signature::of(&parts) {
        for at in [now, OffsetDateTime::now_utc()] {
            assert!(
                signature.verify(&Secret::new("a secret that signs nothing else"), &parts, body, at).is_err()
            );
        }
        if let Ok(canonical) = signature.canonical(&parts, body) {
            assert!(canonical.request().ends_with(canonical.payload.as_bytes()));
        }
    }
    // What we sign ourselves is right, and does not depend on what was signed before.
    let mut signed = parts;
    signed.headers.remove("x-amz-content-sha256");
    let signer = Signer::new("AKIDEXAMPLE", "secret", "us-east-1", "service");
    if signer.sign(&mut signed, body, now).is_ok() {
        let secret = Secret::new("secret");
        let verified = Signature::of(&signed).map(|signature| signature.verify(&secret, &signed, body, now));
        assert_eq!(verified, Ok(Ok(())), "{signed:?}");
    }
}

/// Text in answers: what a parser reads is what was written, but for what XML cannot say.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);

    let mut w = xml::Writer::new(Protocol::Ec2);
    w.member("a", text.as_ref());
    let written = w.finish().into_bytes();
    let written = std::str::from_utf8(&written).expect("the answer is UTF-8");
    let document = roxmltree::Document::parse(written).expect("the answer is XML");
    let sayable =
        |c: char| !matches!(c, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
    let expected: String = text.chars().map(|c| if sayable(c) { c } else { '\u{fffd}' }).collect();
    assert_eq!(document.root_element().text().unwrap_or_default(), expected);

    let mut w = json::Writer::new();
    w.string(&text);
    let written = w.finish().into_bytes();
    assert_eq!(serde_json::from_slice::<String>(&written).expect("the answer is JSON"), text);
}

/// Reads a request written as text; none where HTTP cannot say it.
fn parse(data: &[u8]) -> Option<(Parts, &[u8])> {
    let end = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let mut parts = http::Request::new(()).into_parts().0;
    parts.method = Method::from_bytes(first.next()?).ok()?;
    parts.uri = Uri::try_from(first.next()?.to_vec()).ok()?;
    // As many as the endpoint's HTTP takes.
    for line in lines.take(100) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        parts.headers.append(name, value);
    }
    Some((parts, body))
}
