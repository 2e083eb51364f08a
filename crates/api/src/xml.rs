//! XML answers of the `ec2` and `query` protocols, written straight into their chunks.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use time::OffsetDateTime;

use crate::body::Rope;
use crate::schema::{Protocol, ServiceModel};
use crate::service::{self, Answer, Reply};
use crate::timestamp;
use crate::value::{FromValue, Value};
use crate::{Context, Error};

/// Writes XML elements.
#[derive(Debug)]
pub struct Writer {
    out: Rope,
    protocol: Protocol,
}

/// What may stand in an element.
pub trait Content {
    /// Writes the text or the child elements.
    fn write(&self, w: &mut Writer);
}

impl Writer {
    /// A writer of one of the XML protocols.
    pub fn new(protocol: Protocol) -> Self {
        Writer { out: Rope::new(), protocol }
    }

    /// Everything written.
    pub fn finish(self) -> Rope {
        self.out
    }

    /// Writes markup as it is.
    pub fn raw(&mut self, markup: &str) {
        self.out.push(markup.as_bytes());
    }

    /// Writes text, escaped; what XML 1.0 cannot say becomes U+FFFD.
    pub fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut written = 0;
        for (index, &byte) in bytes.iter().enumerate() {
            let (escape, length): (&[u8], usize) = match byte {
                b'&' => (b"&amp;", 1),
                b'<' => (b"&lt;", 1),
                b'>' => (b"&gt;", 1),
                b'"' => (b"&quot;", 1),
                b'\r' => (b"&#xD;", 1),
                b'\t' | b'\n' => continue,
                0..=0x1f => ("\u{fffd}".as_bytes(), 1),
                0xef if matches!(bytes.get(index + 1..index + 3), Some([0xbf, 0xbe | 0xbf])) => {
                    ("\u{fffd}".as_bytes(), 3)
                }
                _ => continue,
            };
            self.out.push(&bytes[written..index]);
            self.out.push(escape);
            written = index + length;
        }
        self.out.push(&bytes[written..]);
    }

    /// `<name>value</name>`.
    pub fn member<T: Content + ?Sized>(&mut self, name: &str, value: &T) {
        self.open(name);
        value.write(self);
        self.close(name);
    }

    /// `<name>value</name>`, or nothing.
    pub fn option<T: Content>(&mut self, name: &str, value: &Option<T>) {
        if let Some(value) = value {
            self.member(name, value);
        }
    }

    /// `<name><item>…</item>…</name>`; `<name/>` for an empty list.
    pub fn list<T: Content>(&mut self, name: &str, item: &str, values: &[T]) {
        if values.is_empty() {
            self.empty(name);
            return;
        }
        self.open(name);
        self.flat(item, values);
        self.close(name);
    }

    /// A list without a wrapping element.
    pub fn flat<T: Content>(&mut self, item: &str, values: &[T]) {
        for value in values {
            self.member(item, value);
        }
    }

    /// A map: `<name><entry><key>…</key><value>…</value></entry>…</name>`.
    pub fn map<T: Content>(&mut self, name: &str, key: &str, value: &str, entries: &BTreeMap<String, T>) {
        if entries.is_empty() {
            self.empty(name);
            return;
        }
        self.open(name);
        for (k, v) in entries {
            self.open("entry");
            self.member(key, k.as_str());
            self.member(value, v);
            self.close("entry");
        }
        self.close(name);
    }

    fn open(&mut self, name: &str) {
        self.out.push(b"<");
        self.out.push(name.as_bytes());
        self.out.push(b">");
    }

    fn close(&mut self, name: &str) {
        self.out.push(b"</");
        self.out.push(name.as_bytes());
        self.out.push(b">");
    }

    fn empty(&mut self, name: &str) {
        self.out.push(b"<");
        self.out.push(name.as_bytes());
        self.out.push(b"/>");
    }
}

/// Content that is already encoded: made once from a `T`, then written as it lies.
///
/// A service keeps one per record and revision, so that listing thousands of records encodes none of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    bytes: Bytes,
    of: PhantomData<fn() -> T>,
}

impl<T: Content> Encoded<T> {
    /// Encodes a value as the `ec2` protocol does.
    pub fn new(value: &T) -> Self {
        let mut w = Writer::new(Protocol::Ec2);
        value.write(&mut w);
        Encoded { bytes: w.finish().into_bytes(), of: PhantomData }
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl<T: Content> From<T> for Encoded<T> {
    fn from(value: T) -> Self {
        Encoded::new(&value)
    }
}

impl<T> Content for Encoded<T> {
    fn write(&self, w: &mut Writer) {
        w.out.chain(&self.bytes);
    }
}

impl Content for str {
    fn write(&self, w: &mut Writer) {
        w.text(self);
    }
}

impl Content for String {
    fn write(&self, w: &mut Writer) {
        w.text(self);
    }
}

impl Content for bool {
    fn write(&self, w: &mut Writer) {
        w.raw(if *self { "true" } else { "false" });
    }
}

impl Content for i32 {
    fn write(&self, w: &mut Writer) {
        i64::from(*self).write(w);
    }
}

impl Content for i64 {
    fn write(&self, w: &mut Writer) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = self.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if *self < 0 {
            w.out.push(b"-");
        }
        w.out.push(&digits[at..]);
    }
}

impl Content for f64 {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.to_string());
    }
}

impl Content for OffsetDateTime {
    fn write(&self, w: &mut Writer) {
        let text = timestamp::iso8601(*self, w.protocol == Protocol::Ec2);
        w.raw(&text);
    }
}

impl Content for Bytes {
    fn write(&self, w: &mut Writer) {
        w.raw(&BASE64_STANDARD.encode(self));
    }
}

impl<T: Content> Content for Box<T> {
    fn write(&self, w: &mut Writer) {
        self.as_ref().write(w);
    }
}

/// The answer of an operation without output: EC2 says `<return>true</return>`, Query nothing.
impl Content for () {
    fn write(&self, w: &mut Writer) {
        if w.protocol == Protocol::Ec2 {
            w.member("return", &true);
        }
    }
}

/// Calls a handler and encodes its answer.
pub fn reply<'a, I, O, F>(
    model: &'static ServiceModel,
    ctx: &'a Context,
    wrapper: &'static str,
    input: Value,
    handler: impl FnOnce(I) -> F + Send + 'a,
) -> Reply<'a>
where
    I: FromValue + Send + 'a,
    O: Content + 'a,
    F: Future<Output = Result<O, Error>> + Send + 'a,
{
    Box::pin(async move {
        let output = handler(service::input(input)?).await?;
        Ok(Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            content_type: CONTENT_TYPE,
            body: envelope(model, ctx, wrapper, &output),
        })
    })
}

/// The content type of XML answers.
pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/xml;charset=UTF-8");

/// An answer in the envelope of its protocol.
fn envelope<T: Content>(model: &ServiceModel, ctx: &Context, wrapper: &str, output: &T) -> Rope {
    let mut w = Writer::new(model.protocol);
    let slash = if model.xml_namespace.ends_with('/') { "" } else { "/" };
    w.raw("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<");
    w.raw(ctx.operation);
    w.raw("Response xmlns=\"");
    w.raw(model.xml_namespace);
    w.raw(slash);
    w.raw("\">");
    if model.protocol == Protocol::Ec2 {
        w.member("requestId", ctx.request_id.as_str());
        output.write(&mut w);
    } else {
        if wrapper.is_empty() {
            output.write(&mut w);
        } else {
            w.member(wrapper, output);
        }
        w.raw("<ResponseMetadata>");
        w.member("RequestId", ctx.request_id.as_str());
        w.raw("</ResponseMetadata>");
    }
    w.raw("</");
    w.raw(ctx.operation);
    w.raw("Response>");
    w.finish()
}
