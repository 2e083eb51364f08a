//! XML answers of the `ec2` and `query` protocols, written straight into their chunks.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::ops::Range;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;

use crate::body::Rope;
use crate::note::{Noted, Text};
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
    /// What is written becomes JSON instead, for those who note down what was answered: lists are arrays, in the `ec2` protocol
    /// within `items`, as CloudTrail has them.
    note: Option<Text>,
}

/// Bytes that cannot be written as they are, or begin a character (U+FFFE, U+FFFF) that cannot.
const SUSPECT: [bool; 256] = {
    let mut table = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = !matches!(control as u8, b'\t' | b'\n');
        control += 1;
    }
    table[b'&' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'"' as usize] = true;
    table[0xef] = true;
    table
};

/// What may stand in an element.
pub trait Content {
    /// Writes the text or the child elements.
    fn write(&self, w: &mut Writer);
}

impl Writer {
    /// A writer of one of the XML protocols.
    pub fn new(protocol: Protocol) -> Self {
        Writer { out: Rope::new(), protocol, note: None }
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
        if let Some(note) = &mut self.note {
            return note.leaf(text);
        }
        let bytes = text.as_bytes();
        let mut written = 0;
        // Nearly all text has nothing to escape, which one table lookup a byte finds out.
        while let Some(found) = bytes[written..].iter().position(|&byte| SUSPECT[usize::from(byte)]) {
            let at = written + found;
            let (escape, length): (&[u8], usize) = match bytes[at] {
                b'&' => (b"&amp;", 1),
                b'<' => (b"&lt;", 1),
                b'>' => (b"&gt;", 1),
                b'"' => (b"&quot;", 1),
                b'\r' => (b"&#xD;", 1),
                0xef if !matches!(bytes.get(at + 1..at + 3), Some([0xbf, 0xbe | 0xbf])) => {
                    (&bytes[at..=at], 1)
                }
                0xef => ("\u{fffd}".as_bytes(), 3),
                _ => ("\u{fffd}".as_bytes(), 1),
            };
            self.out.push(&bytes[written..at]);
            self.out.push(escape);
            written = at + length;
        }
        self.out.push(&bytes[written..]);
    }

    /// Writes a member that must not be logged.
    pub fn sensitive(&mut self, write: impl FnOnce(&mut Self)) {
        self.note.iter_mut().for_each(|note| note.sensitive = true);
        write(self);
        self.note.iter_mut().for_each(|note| note.sensitive = false);
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
        if self.note.is_some() {
            return self.note_list(name, values, self.protocol == Protocol::Ec2);
        }
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
        if self.note.is_some() {
            return self.note_list(item, values, false);
        }
        for value in values {
            self.member(item, value);
        }
    }

    /// A map: `<name><entry><key>…</key><value>…</value></entry>…</name>`.
    pub fn map<T: Content>(&mut self, name: &str, key: &str, value: &str, entries: &BTreeMap<String, T>) {
        if self.note.is_some() {
            return self.note_map(name, entries);
        }
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

    /// A map without a wrapping element: `<name><key>…</key><value>…</value></name>…`.
    pub fn flat_map<T: Content>(
        &mut self,
        name: &str,
        key: &str,
        value: &str,
        entries: &BTreeMap<String, T>,
    ) {
        if self.note.is_some() {
            return self.note_map(name, entries);
        }
        for (k, v) in entries {
            self.open(name);
            self.member(key, k.as_str());
            self.member(value, v);
            self.close(name);
        }
    }

    fn note_list<T: Content>(&mut self, name: &str, values: &[T], wrapped: bool) {
        self.open(name);
        if wrapped {
            self.open("items");
        }
        self.note(Text::open_items);
        for value in values {
            self.note(Text::open_item);
            value.write(self);
            self.note(Text::close);
        }
        self.note(Text::close_items);
        if wrapped {
            self.close("items");
        }
        self.close(name);
    }

    fn note_map<T: Content>(&mut self, name: &str, entries: &BTreeMap<String, T>) {
        self.open(name);
        for (key, value) in entries {
            self.note(|note| note.open_key(key));
            value.write(self);
            self.note(Text::close);
        }
        self.note(|note| note.leaf_if_nothing(serde_json::Map::new()));
        self.close(name);
    }

    fn note(&mut self, write: impl FnOnce(&mut Text)) {
        if let Some(note) = &mut self.note {
            write(note);
        }
    }

    /// Writes a value that needs no escapes, `text` in XML.
    fn literal(&mut self, text: &str, value: impl Serialize) {
        match &mut self.note {
            Some(note) => note.leaf(value),
            None => self.raw(text),
        }
    }

    fn open(&mut self, name: &str) {
        if let Some(note) = &mut self.note {
            return note.open(name);
        }
        self.out.push_all([b"<", name.as_bytes(), b">"]);
    }

    fn close(&mut self, name: &str) {
        if let Some(note) = &mut self.note {
            return note.close();
        }
        self.out.push_all([b"</", name.as_bytes(), b">"]);
    }

    fn empty(&mut self, name: &str) {
        self.out.push_all([b"<", name.as_bytes(), b"/>"]);
    }
}

/// Items of a list that are already encoded: made once from their values, then written as they lie.
///
/// A service that keeps them encodes none of the thousands of records that it lists.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    bytes: Bytes,
    of: PhantomData<fn() -> T>,
}

impl<T: Content> From<T> for Encoded<T> {
    fn from(value: T) -> Self {
        EncodedItems::new("", [value]).run(0..1)
    }
}

impl<T> Content for Encoded<T> {
    fn write(&self, w: &mut Writer) {
        w.out.chain(&self.bytes);
    }
}

/// Consecutive items of a list in one piece of memory, of which any run is an [`Encoded`] without a copy.
#[derive(Debug, Clone)]
pub struct EncodedItems<T> {
    bytes: Bytes,
    places: Vec<Range<usize>>,
    of: PhantomData<fn() -> T>,
}

impl<T: Content> EncodedItems<T> {
    /// Encodes values as the `ec2` protocol does, each an element `item` of its list.
    pub fn new(item: &str, values: impl IntoIterator<Item = T>) -> Self {
        let mut w = Writer::new(Protocol::Ec2);
        let mut places = Vec::new();
        for value in values {
            if !places.is_empty() {
                w.close(item);
                w.open(item);
            }
            let start = w.out.len();
            value.write(&mut w);
            places.push(start..w.out.len());
        }
        let mut bytes = Vec::from(w.finish().into_bytes());
        bytes.shrink_to_fit();
        EncodedItems { bytes: bytes.into(), places, of: PhantomData }
    }

    /// Some of the items.
    ///
    /// # Panics
    /// For an empty range, and for one that reaches beyond the items.
    pub fn run(&self, items: Range<usize>) -> Encoded<T> {
        let places = &self.places[items];
        let (Some(first), Some(last)) = (places.first(), places.last()) else { panic!("a run of no items") };
        Encoded { bytes: self.bytes.slice(first.start..last.end), of: PhantomData }
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
        w.literal(if *self { "true" } else { "false" }, self);
    }
}

impl Content for i32 {
    fn write(&self, w: &mut Writer) {
        i64::from(*self).write(w);
    }
}

impl Content for i64 {
    fn write(&self, w: &mut Writer) {
        if let Some(note) = &mut w.note {
            return note.leaf(self);
        }
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

/// `Infinity`, `-Infinity` and `NaN` are what XML Schema's `double` and Smithy call them.
impl Content for f64 {
    fn write(&self, w: &mut Writer) {
        if self.is_infinite() {
            let text = if *self > 0.0 { "Infinity" } else { "-Infinity" };
            w.literal(text, text);
        } else {
            w.literal(&format!("{self:?}"), self);
        }
    }
}

impl Content for OffsetDateTime {
    fn write(&self, w: &mut Writer) {
        let text = timestamp::iso8601(*self, w.protocol == Protocol::Ec2);
        w.literal(&text, &text);
    }
}

impl Content for Bytes {
    fn write(&self, w: &mut Writer) {
        let text = BASE64_STANDARD.encode(self);
        w.literal(&text, &text);
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
            noted: ctx.noted.then(|| noted(model.protocol, ctx, &output)),
        })
    })
}

/// What was answered, for those who note it down. EC2's answers begin with the id of the request.
fn noted<T: Content>(protocol: Protocol, ctx: &Context, output: &T) -> Noted {
    Text::of(|note| {
        if protocol == Protocol::Ec2 {
            note.open("requestId");
            note.leaf(&ctx.request_id);
            note.close();
        }
        let mut w = Writer { out: Rope::new(), protocol, note: Some(std::mem::take(note)) };
        output.write(&mut w);
        *note = w.note.unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &str) -> String {
        let mut w = Writer::new(Protocol::Ec2);
        value.write(&mut w);
        String::from_utf8(w.finish().into_bytes().to_vec()).unwrap()
    }

    #[test]
    fn text_is_escaped_and_what_xml_cannot_say_is_replaced() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("<a & \"b\">", "&lt;a &amp; &quot;b&quot;&gt;"),
            ("tab\tline\nreturn\r", "tab\tline\nreturn&#xD;"),
            ("\0\u{1}\u{1f}x\u{7f}", "\u{fffd}\u{fffd}\u{fffd}x\u{7f}"),
            ("\u{fffe}\u{ffff}\u{fffd}\u{ff21}\u{f000}", "\u{fffd}\u{fffd}\u{fffd}\u{ff21}\u{f000}"),
            ("é€😀", "é€😀"),
        ] {
            assert_eq!(written(text), expected);
        }
    }

    #[test]
    fn a_run_of_encoded_items_is_what_the_items_are() {
        let values = ["a".to_owned(), "<b>".to_owned(), String::new(), "d".repeat(300_000)];
        let list = |items: &[Encoded<String>]| {
            let mut w = Writer::new(Protocol::Ec2);
            w.flat("item", items);
            w.finish().into_bytes()
        };
        let items = EncodedItems::new("item", values.iter().cloned());
        for start in 0..values.len() {
            for end in start + 1..=values.len() {
                let one_by_one: Vec<_> = values[start..end].iter().cloned().map(Encoded::from).collect();
                assert_eq!(list(&[items.run(start..end)]), list(&one_by_one));
            }
        }
    }
}
