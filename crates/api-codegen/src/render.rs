//! Rust source from a resolved API.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::model::{Operation, Reference, Shape};
use crate::names;
use crate::resolve::{Api, Protocol};
use crate::table::{Permission, Rule};

/// Appends a line.
macro_rules! line {
    ($out:expr, $($format:tt)*) => {
        // Writing to a String cannot fail.
        let _ = writeln!($out, $($format)*);
    };
}

/// The whole source.
pub(crate) fn render(api: &Api<'_>) -> String {
    let mut out = String::new();
    let metadata = &api.model.metadata;
    line!(out, "// Generated from the API model of {} {}.", metadata.service_full_name, metadata.api_version);
    let shapes: BTreeSet<&str> = api.inputs.union(&api.outputs).copied().collect();
    for name in &shapes {
        let shape = api.shape(name);
        if !api.has_type(name) {
            continue;
        }
        if shape.kind == "structure" {
            structure(&mut out, api, name);
        } else {
            enumeration(&mut out, name, shape);
        }
    }
    for name in &api.inputs {
        table(&mut out, api, name);
    }
    errors(&mut out, api);
    service(&mut out, api);
    out
}

fn enumeration(out: &mut String, name: &str, shape: &Shape) {
    line!(out, "haar_api::string_enum! {{");
    line!(out, "/// The values of `{name}`.");
    line!(out, "{} {{", names::type_name(name));
    let mut seen = BTreeSet::new();
    for value in &shape.values {
        let mut variant = names::variant(value);
        while !seen.insert(variant.clone()) {
            variant.push('_');
        }
        line!(out, "{variant} = {value:?},");
    }
    line!(out, "}} }}");
}

/// The Rust type of a use of a shape, without the option around it.
fn rust_type(api: &Api<'_>, reference: &Reference, owner: Option<&str>) -> String {
    let name = reference.shape.as_str();
    let shape = api.shape(name);
    match shape.kind.as_str() {
        "structure" if shape.document => "haar_api::serde_json::Value".into(),
        "structure" => {
            let target = names::type_name(name);
            // Names of the model outlive the API that borrows it; the owner is one of them.
            match owner.filter(|owner| boxed(api, owner, name)) {
                Some(_) => format!("Box<{target}>"),
                None => target,
            }
        }
        "list" => {
            let Some(member) = &shape.member else { return "Vec<()>".into() };
            let inner = rust_type(api, member, None);
            if api.table.encoded.contains(&member.shape) && !api.inputs.contains(name) {
                format!("Vec<haar_api::xml::Encoded<{inner}>>")
            } else {
                format!("Vec<{inner}>")
            }
        }
        "map" => {
            let inner = shape.value.as_ref().map_or_else(|| "()".into(), |value| rust_type(api, value, None));
            format!("std::collections::BTreeMap<String, {inner}>")
        }
        "string" | "character" if api.is_enum(shape) => names::type_name(name),
        "string" | "character" => "String".into(),
        "integer" | "short" | "byte" => "i32".into(),
        "long" => "i64".into(),
        "float" | "double" => "f64".into(),
        "boolean" => "bool".into(),
        "timestamp" => "haar_api::OffsetDateTime".into(),
        _ => "haar_api::Bytes".into(),
    }
}

fn boxed(api: &Api<'_>, owner: &str, target: &str) -> bool {
    let key = |name: &str| api.model.shapes.get_key_value(name).map(|(name, _)| name.as_str());
    match (key(owner), key(target)) {
        (Some(owner), Some(target)) => api.is_boxed(owner, target),
        _ => false,
    }
}

fn is_collection(shape: &Shape) -> bool {
    matches!(shape.kind.as_str(), "list" | "map")
}

/// Whether the Rust field of a member is an `Option`.
fn is_optional(api: &Api<'_>, owner: &str, member: &str, reference: &Reference, rule: Rule<'_>) -> bool {
    if is_collection(api.shape(&reference.shape)) {
        rule == Rule::Optional
    } else {
        !api.is_plain(owner, member)
    }
}

/// Whether a structure has a default: no field of it must be there whose type has none.
fn has_default(api: &Api<'_>, name: &str) -> bool {
    let Some((name, _)) = api.model.shapes.get_key_value(name) else { return false };
    api.fields(name).all(|(member, reference, rule)| {
        let shape = api.shape(&reference.shape);
        if is_collection(shape) || is_optional(api, name, member, reference, rule) {
            return true;
        }
        match shape.kind.as_str() {
            "structure" => {
                shape.document || (!boxed(api, name, &reference.shape) && has_default(api, &reference.shape))
            }
            "string" => !api.is_enum(shape),
            "timestamp" => false,
            _ => true,
        }
    })
}

fn structure(out: &mut String, api: &Api<'_>, name: &str) {
    let Some((name, shape)) = api.model.shapes.get_key_value(name) else { return };
    let rust = names::type_name(name);
    let default = if has_default(api, name) { ", Default" } else { "" };
    line!(out, "/// The `{name}` structure.");
    line!(out, "#[derive(Debug, Clone, PartialEq{default})]");
    line!(out, "pub struct {rust} {{");
    for (member, reference, rule) in api.fields(name) {
        let mut kind = rust_type(api, reference, Some(name));
        if is_optional(api, name, member, reference, rule) {
            kind = format!("Option<{kind}>");
        }
        line!(out, "pub {}: {kind},", names::identifier(member));
    }
    line!(out, "}}");
    if api.inputs.contains(name.as_str()) {
        from_value(out, api, name, &rust);
    }
    if api.outputs.contains(name.as_str()) {
        if api.protocol.is_xml() {
            write_xml(out, api, name, &rust);
        } else {
            write_json(out, api, name, &rust, shape);
        }
    }
}

fn from_value(out: &mut String, api: &Api<'_>, name: &str, rust: &str) {
    let Some((name, _)) = api.model.shapes.get_key_value(name) else { return };
    let fields: Vec<String> =
        api.fields(name).map(|(member, _, _)| format!("{}: f.take()?", names::identifier(member))).collect();
    line!(out, "impl haar_api::value::FromValue for {rust} {{");
    line!(out, "fn from_value(v: haar_api::value::Value) -> Option<Self> {{");
    if fields.is_empty() {
        line!(out, "v.fields().map(|_| Self {{}})");
    } else {
        line!(out, "let mut f = v.fields()?;");
        line!(out, "Some(Self {{ {} }})", fields.join(", "));
    }
    line!(out, "}} }}");
}

fn write_xml(out: &mut String, api: &Api<'_>, name: &str, rust: &str) {
    let Some((name, _)) = api.model.shapes.get_key_value(name) else { return };
    let mut body = String::new();
    for (member, reference, rule) in api.fields(name) {
        let field = names::identifier(member);
        let wire = reference.location_name.as_deref().unwrap_or(member);
        let shape = api.shape(&reference.shape);
        let optional = is_optional(api, name, member, reference, rule);
        let from = if optional { "x".to_owned() } else { format!("&self.{field}") };
        let write = match (shape.kind.as_str(), &shape.member, &shape.value) {
            ("list", Some(item), _) if shape.flattened || reference.flattened => {
                format!("w.flat({:?}, {from})", item.location_name.as_deref().unwrap_or(wire))
            }
            ("list", Some(item), _) => {
                format!("w.list({wire:?}, {:?}, {from})", item.location_name.as_deref().unwrap_or("member"))
            }
            ("map", _, Some(value)) => {
                let key = shape.key.as_ref().and_then(|key| key.location_name.as_deref()).unwrap_or("key");
                let value = value.location_name.as_deref().unwrap_or("value");
                let call = if shape.flattened || reference.flattened { "flat_map" } else { "map" };
                format!("w.{call}({wire:?}, {key:?}, {value:?}, {from})")
            }
            _ => {
                let call = if optional { "option" } else { "member" };
                let format = timestamp_format(api, reference);
                let write = format!("w.{call}({wire:?}, &{})", formatted(&field, optional, format));
                let write = if shape.sensitive { format!("w.sensitive(|w| {write})") } else { write };
                line!(body, "{write};");
                continue;
            }
        };
        if optional {
            line!(body, "if let Some(x) = &self.{field} {{ {write}; }}");
        } else if api.table.omit_empty.contains(&reference.shape) {
            line!(body, "if !self.{field}.is_empty() {{ {write}; }}");
        } else {
            line!(body, "{write};");
        }
    }
    let w = if body.is_empty() { "_" } else { "w" };
    line!(out, "impl haar_api::xml::Content for {rust} {{");
    line!(out, "fn write(&self, {w}: &mut haar_api::xml::Writer) {{\n{body}}} }}");
}

fn write_json(out: &mut String, api: &Api<'_>, name: &str, rust: &str, shape: &Shape) {
    let Some((name, _)) = api.model.shapes.get_key_value(name) else { return };
    let is_answer = api.table.operations.keys().any(|operation| {
        api.model.operations[operation].output.as_ref().is_some_and(|output| output.shape == *name)
    });
    let (mut body, mut head) = (String::new(), String::new());
    for (member, reference, rule) in api.fields(name) {
        let field = names::identifier(member);
        let wire = reference.location_name.as_deref().unwrap_or(member);
        match reference.location.as_deref() {
            Some("header") if is_collection(api.shape(&reference.shape)) => {
                line!(head, "head.list({wire:?}, &self.{field});");
            }
            Some("header") => {
                let format = timestamp_format(api, reference);
                line!(head, "head.header({wire:?}, &{});", formatted(&field, true, format));
            }
            Some("headers") => {
                line!(head, "head.headers({wire:?}, &self.{field});");
            }
            Some("statusCode") => {
                line!(head, "head.status(self.{field});");
            }
            _ if shape.payload.as_deref() == Some(member) => {}
            _ if is_optional(api, name, member, reference, rule) => {
                let format = timestamp_format(api, reference);
                line!(body, "w.option({wire:?}, &{});", formatted(&field, true, format));
            }
            _ if api.table.omit_empty.contains(&reference.shape) => {
                line!(body, "if !self.{field}.is_empty() {{ w.member({wire:?}, &self.{field}); }}");
            }
            _ => {
                let format = timestamp_format(api, reference);
                line!(body, "w.member({wire:?}, &{});", formatted(&field, false, format));
            }
        }
    }
    let w = if body.is_empty() { "_" } else { "w" };
    line!(out, "impl haar_api::json::Content for {rust} {{");
    line!(out, "fn write(&self, w: &mut haar_api::json::Writer) {{ w.object(|{w}| {{\n{body}}}) }} }}");
    if api.protocol == Protocol::RestJson && is_answer {
        line!(out, "impl haar_api::rest::Output for {rust} {{");
        if !head.is_empty() {
            line!(out, "fn head(&self, head: &mut haar_api::rest::Head) {{\n{head}}}");
        }
        let payload =
            match shape.payload.as_deref().and_then(|payload| Some((payload, shape.members.get(payload)?))) {
                Some((payload, reference)) => {
                    let kind =
                        if api.shape(&reference.shape).kind == "structure" { "structure" } else { "raw" };
                    format!("haar_api::rest::{kind}(&self.{})", names::identifier(payload))
                }
                None => "haar_api::rest::members(self)".into(),
            };
        line!(out, "fn body(&self) -> haar_api::Rope {{ {payload} }} }}");
    }
}

/// The type of `haar_api::timestamp` that writes a timestamp as the model says; none where that is as the protocol does.
fn timestamp_format(api: &Api<'_>, reference: &Reference) -> Option<&'static str> {
    let shape = api.shape(&reference.shape);
    if shape.kind != "timestamp" {
        return None;
    }
    let format = reference.timestamp_format.as_deref().or(shape.timestamp_format.as_deref());
    match (format, reference.location.as_deref()) {
        (Some("iso8601"), _) => Some("Iso8601"),
        (Some("rfc822"), _) | (None, Some("header")) => Some("HttpDate"),
        (Some("unixTimestamp"), _) => Some("EpochSeconds"),
        _ => None,
    }
}

/// The expression of a field, in a timestamp format.
fn formatted(field: &str, optional: bool, format: Option<&str>) -> String {
    match format {
        None => format!("self.{field}"),
        Some(format) if optional => format!("self.{field}.map(haar_api::timestamp::{format})"),
        Some(format) => format!("haar_api::timestamp::{format}(self.{field})"),
    }
}

/// The static that describes a shape of a request: the runtime's own for one without constraints.
fn static_name(api: &Api<'_>, name: &str) -> String {
    let shape = api.shape(name);
    if shape.document {
        return "haar_api::schema::DOCUMENT".into();
    }
    let bare = shape.min.is_none() && shape.max.is_none() && shape.pattern.is_none() && !api.is_enum(shape);
    let shared = match shape.kind.as_str() {
        "string" | "character" if bare => "STRING",
        "integer" | "short" | "byte" if bare => "INTEGER",
        "long" if bare => "LONG",
        "float" | "double" if bare => "DOUBLE",
        "boolean" => "BOOLEAN",
        "timestamp" => "TIMESTAMP",
        "blob" if bare => "BLOB",
        _ => return format!("SHAPE_{}", names::snake(name).to_uppercase()),
    };
    format!("haar_api::schema::{shared}")
}

fn bounds(shape: &Shape) -> String {
    let bound = |number: &Option<serde_json::Number>| {
        let number = number.as_ref()?;
        number.as_i64().or_else(|| number.as_f64().map(|value| value as i64))
    };
    match (bound(&shape.min), bound(&shape.max)) {
        (None, None) => "ANY".into(),
        (min, max) => {
            let min = min.map_or("i64::MIN".into(), |min| min.to_string());
            let max = max.map_or("i64::MAX".into(), |max| max.to_string());
            format!("Bounds {{ min: {min}, max: {max} }}")
        }
    }
}

/// The static table of a shape that requests reach.
fn table(out: &mut String, api: &Api<'_>, name: &str) {
    let target = static_name(api, name);
    if target.contains("::") {
        return;
    }
    let shape = api.shape(name);
    let bounds = bounds(shape);
    let kind = match shape.kind.as_str() {
        "structure" => {
            let members: Vec<String> = shape
                .members
                .iter()
                .map(|(member, reference)| table_member(api, name, member, reference))
                .collect();
            format!("Structure(&[\n{}])", members.concat())
        }
        "list" => {
            let Some(member) = &shape.member else { return };
            let wire = match api.protocol {
                Protocol::Query if !shape.flattened => member.location_name.as_deref().unwrap_or("member"),
                _ => "",
            };
            format!(
                "List(List {{ member: &{}, wire: {wire:?}, bounds: {bounds} }})",
                static_name(api, &member.shape)
            )
        }
        "map" => {
            let (Some(key), Some(value)) = (&shape.key, &shape.value) else { return };
            format!(
                "Map(Map {{ key: &{}, value: &{}, wire: {:?}, key_wire: {:?}, value_wire: {:?}, bounds: {bounds} }})",
                static_name(api, &key.shape),
                static_name(api, &value.shape),
                if shape.flattened { "" } else { "entry" },
                key.location_name.as_deref().unwrap_or("key"),
                value.location_name.as_deref().unwrap_or("value"),
            )
        }
        "integer" | "short" | "byte" => format!("Integer({bounds})"),
        "long" => format!("Long({bounds})"),
        "float" | "double" => format!("Double({bounds})"),
        "blob" => format!("Blob({bounds})"),
        _ => {
            let values =
                if api.is_enum(shape) { format!("{}::VALUES", names::type_name(name)) } else { "&[]".into() };
            let pattern = match shape.checked_pattern() {
                Some(pattern) => {
                    line!(
                        out,
                        "static PATTERN_{target}: haar_api::schema::Pattern = haar_api::schema::Pattern::new({pattern:?});"
                    );
                    format!("Some(&PATTERN_{target})")
                }
                None => "None".into(),
            };
            format!("String(Text {{ bounds: {bounds}, values: {values}, pattern: {pattern} }})")
        }
    };
    line!(out, "static {target}: haar_api::schema::Shape = {{");
    line!(out, "use haar_api::schema::*;");
    if shape.union {
        let members = kind.trim_start_matches("Structure(");
        line!(out, "Shape::union({name:?}, {members} }};");
    } else {
        line!(out, "Shape::new({name:?}, Kind::{kind}) }};");
    }
}

fn table_member(api: &Api<'_>, owner: &str, member: &str, reference: &Reference) -> String {
    let wire = match api.protocol {
        Protocol::Ec2 => match (&reference.query_name, &reference.location_name) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => names::type_name(name),
            (None, None) => member.to_owned(),
        },
        Protocol::Query => {
            // A flattened list stands under the name of its elements.
            let shape = api.shape(&reference.shape);
            let flat = shape.member.as_ref().filter(|_| shape.flattened || reference.flattened);
            let item = flat.and_then(|item| item.location_name.clone());
            item.or_else(|| reference.location_name.clone()).unwrap_or_else(|| member.to_owned())
        }
        Protocol::Json | Protocol::RestJson => {
            reference.location_name.as_deref().unwrap_or(member).to_owned()
        }
    };
    let mut text = format!("Member::new({member:?}, {wire:?}");
    text.push_str(&match api.rule(owner, member) {
        Rule::Yes | Rule::Optional => format!(", Support::Yes(&{}))", static_name(api, &reference.shape)),
        Rule::Only(value) => format!(", Support::Only({value:?}))"),
        Rule::No => ", Support::No)".into(),
    });
    let shape = api.shape(owner);
    if shape.required.iter().any(|required| required == member) {
        text.push_str(".required()");
    }
    if reference.idempotency_token || (api.protocol == Protocol::Ec2 && member == "ClientToken") {
        text.push_str(".idempotency_token()");
    }
    if api.shape(&reference.shape).sensitive {
        text.push_str(".sensitive()");
    }
    let location = match reference.location.as_deref() {
        Some("uri") => Some("Uri"),
        Some("querystring") => Some("Query"),
        Some("header") => Some("Header"),
        Some("headers") => Some("Headers"),
        _ if shape.payload.as_deref() == Some(member) => Some("Payload"),
        _ => None,
    };
    if let Some(location) = location {
        text.push_str(&format!(".at(Location::{location})"));
    }
    text.push_str(",\n");
    text
}

/// One constructor an error that the operations document.
fn errors(out: &mut String, api: &Api<'_>) {
    let shapes: BTreeSet<&str> = api
        .table
        .operations
        .keys()
        .flat_map(|operation| &api.model.operations[operation].errors)
        .map(|error| error.shape.as_str())
        .collect();
    if shapes.is_empty() {
        return;
    }
    line!(out, "/// The errors that the operations document.");
    line!(out, "pub mod errors {{");
    for name in shapes {
        let shape = api.shape(name);
        let about = shape.error.as_ref();
        let code = about.and_then(|error| error.code.as_deref()).unwrap_or(name);
        let status =
            about.and_then(|error| error.http_status_code).unwrap_or(if shape.fault { 500 } else { 400 });
        line!(out, "/// `{code}`, status {status}.");
        line!(out, "pub fn {}(message: impl Into<String>) -> haar_api::Error {{", names::identifier(name));
        line!(out, "haar_api::Error::new({code:?}, message).with_status({status})\n}}");
    }
    line!(out, "}}");
}

/// The trait of the handlers, the table of the service, and the dispatch between them.
fn service(out: &mut String, api: &Api<'_>) {
    let metadata = &api.model.metadata;
    let name = service_name(&metadata.service_id);
    let implemented: Vec<(&String, &Operation)> =
        api.table.operations.keys().map(|name| (name, &api.model.operations[name])).collect();

    line!(out, "/// The implemented operations of {}.", metadata.service_full_name);
    line!(out, "pub trait {name}: Send + Sync + 'static {{");
    for (operation, shape) in &implemented {
        let input = shape
            .input
            .as_ref()
            .map_or(String::new(), |input| format!(", input: {}", names::type_name(&input.shape)));
        let output = shape.output.as_ref().map_or("()".into(), |output| names::type_name(&output.shape));
        line!(out, "/// `{operation}`.");
        line!(
            out,
            "fn {}(&self, ctx: &haar_api::Context{input}) -> impl Future<Output = Result<{output}, haar_api::Error>> + Send;",
            names::identifier(operation)
        );
    }
    line!(out, "}}");

    let json_version = metadata.json_version.as_deref().unwrap_or("1.1");
    let (protocol, validation, unsupported, max_body) = match api.protocol {
        Protocol::Ec2 => ("Ec2".into(), "InvalidParameterValue", "UnsupportedOperation", 1 << 20),
        Protocol::Query => ("Query".into(), "ValidationError", "UnsupportedOperation", 1 << 20),
        Protocol::Json => (
            format!("Json({json_version:?})"),
            "ValidationException",
            "UnsupportedOperationException",
            8 << 20,
        ),
        Protocol::RestJson => {
            ("RestJson".into(), "ValidationException", "UnsupportedOperationException", 8 << 20)
        }
    };
    let rest = api.protocol == Protocol::RestJson;
    let route = |operation: &str, shape: &Operation| {
        if rest {
            format!(
                "Route {{ name: {operation:?}, method: {:?}, path: {:?} }}",
                shape.http.method, shape.http.request_uri
            )
        } else {
            format!("Route::named({operation:?})")
        }
    };
    line!(out, "/// {}: its names, its protocol and its operations.", metadata.service_full_name);
    line!(out, "pub static MODEL: haar_api::schema::ServiceModel = {{");
    line!(out, "use haar_api::schema::*;");
    line!(out, "ServiceModel {{");
    line!(out, "name: {:?},", metadata.signing_name());
    line!(out, "signing_name: {:?},", metadata.signing_name());
    line!(out, "protocol: Protocol::{protocol},");
    line!(out, "api_version: {:?},", metadata.api_version);
    line!(out, "target_prefix: {:?},", metadata.target_prefix.as_deref().unwrap_or_default());
    line!(
        out,
        "xml_namespace: {:?},",
        metadata.xml_namespace.as_ref().map_or("", |namespace| namespace.uri())
    );
    line!(out, "validation_error: {:?},", api.table.validation_error.as_deref().unwrap_or(validation));
    line!(out, "unsupported_error: {:?},", api.table.unsupported_error.as_deref().unwrap_or(unsupported));
    line!(out, "max_body: {},", api.table.max_body.unwrap_or(max_body));
    line!(out, "operations: &[");
    for (operation, shape) in &implemented {
        let input = shape
            .input
            .as_ref()
            .map_or("haar_api::schema::EMPTY".into(), |input| static_name(api, &input.shape));
        let status = shape.http.response_code.unwrap_or(200);
        let permissions: String = api.table.authorization[*operation]
            .iter()
            .map(|permission| self::permission(api, operation, permission))
            .collect();
        let signed = shape.authtype.as_deref() != Some("none");
        line!(
            out,
            "Operation {{ route: {}, input: &{input}, status: {status}, permissions: &[{permissions}], signed: {signed} }},",
            route(operation, shape)
        );
    }
    line!(out, "],\nmissing: &[");
    for (operation, shape) in &api.model.operations {
        if !api.table.operations.contains_key(operation) {
            line!(out, "{},", route(operation, shape));
        }
    }
    line!(out, "] }} }};");

    line!(out, "/// Answers the operations of {} by calling a [`{name}`].", metadata.service_full_name);
    line!(out, "#[derive(Debug)]");
    line!(out, "pub struct {name}Service<T>(pub T);");
    line!(out, "impl<T: {name}> haar_api::Service for {name}Service<T> {{");
    line!(out, "fn model(&self) -> &'static haar_api::schema::ServiceModel {{ &MODEL }}");
    line!(
        out,
        "fn call<'a>(&'a self, operation: usize, ctx: &'a haar_api::Context, input: haar_api::value::Value) -> haar_api::Reply<'a> {{"
    );
    line!(out, "let h = &self.0;");
    line!(out, "match operation {{");
    for (index, (operation, shape)) in implemented.iter().enumerate() {
        let method = names::identifier(operation);
        let call = match &shape.input {
            Some(_) => format!("move |i| h.{method}(ctx, i)"),
            None => format!("move |()| h.{method}(ctx)"),
        };
        match api.protocol {
            Protocol::Ec2 | Protocol::Query => {
                let wrapper = shape
                    .output
                    .as_ref()
                    .and_then(|output| output.result_wrapper.as_deref())
                    .unwrap_or_default();
                line!(out, "{index} => haar_api::xml::reply(&MODEL, ctx, {wrapper:?}, input, {call}),");
            }
            Protocol::Json => {
                line!(out, "{index} => haar_api::json::reply(&MODEL, ctx, input, {call}),");
            }
            Protocol::RestJson => {
                line!(
                    out,
                    "{index} => haar_api::rest::reply(MODEL.operations[{index}].status, ctx, input, {call}),"
                );
            }
        }
    }
    line!(out, "_ => haar_api::service::no_such_operation(),");
    line!(out, "}} }} }}");
}

/// One permission of an operation, as the runtime reads it.
fn permission(api: &Api<'_>, operation: &str, permission: &Permission) -> String {
    let own = || format!("{}:{operation}", api.model.metadata.signing_name());
    let action = permission.action.clone().unwrap_or_else(own);
    let resource = permission.resource.as_ref().map_or_else(
        || "None".to_owned(),
        |name| format!("Some(ResourceType {{ name: {name:?}, arn: {:?} }})", api.table.resources[name]),
    );
    let path = |path: &String| format!("&{:?}", path.split('.').collect::<Vec<_>>());
    let members: Vec<_> = permission.members.iter().map(path).collect();
    let only_if =
        permission.only_if.as_ref().map_or("None".to_owned(), |member| format!("Some({})", path(member)));
    format!(
        "Permission {{ action: {action:?}, resource: {resource}, members: &[{}], otherwise: Otherwise::{:?}, only_if: {only_if} }},",
        members.join(", "),
        permission.otherwise
    )
}

/// The trait's name: `EC2` is `Ec2`, `CloudWatch Logs` is `CloudWatchLogs`.
fn service_name(id: &str) -> String {
    id.split(' ')
        .map(|word| {
            if word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()) {
                names::type_name(&word.to_ascii_lowercase())
            } else {
                word.to_owned()
            }
        })
        .collect()
}
