//! What the generator refuses: tables that ask for what the model has not, and models that it could only get wrong.

use haar_api_codegen::generate_code;
use haar_api_codegen::model::Model;
use haar_api_codegen::table::Table;
use serde_json::{Value, json};

fn model(protocol: &str) -> Value {
    json!({
        "metadata": {
            "apiVersion": "2026-01-01", "endpointPrefix": "things", "protocol": protocol,
            "serviceFullName": "Things", "serviceId": "Things"
        },
        "operations": {
            "GetThing": {
                "http": { "method": "POST", "requestUri": "/" },
                "input": { "shape": "GetThingRequest" },
                "output": { "shape": "Thing" }
            }
        },
        "shapes": {
            "GetThingRequest": { "type": "structure", "members": { "Id": { "shape": "String" }, "Tags": { "shape": "Tags" } } },
            "Thing": { "type": "structure", "members": { "Names": { "shape": "Names" } } },
            "Tags": { "type": "list", "member": { "shape": "String" } },
            "Names": { "type": "list", "member": { "shape": "String" } },
            "String": { "type": "string" }
        }
    })
}

fn generate(model: Value, table: &str) -> Result<String, String> {
    let model: Model = serde_json::from_value(model).unwrap();
    let declared = table.contains("[authorization]");
    let table = format!("{table}{}", if declared { "" } else { "\n[authorization]\nGetThing = [\"*\"]" });
    let table: Table = toml::from_str(&table).map_err(|error| error.to_string())?;
    generate_code(&model, &table).map_err(|error| error.to_string())
}

const ALL: &str = "[operations]\nGetThing = \"*\"";

#[test]
fn every_protocol_is_generated() {
    for protocol in ["ec2", "query", "json", "rest-json"] {
        let code = generate(model(protocol), ALL).unwrap();
        assert!(code.contains("pub trait Things"), "{protocol}");
        assert!(
            code.contains("fn get_thing(&self, ctx: &haar_api::Context, input: GetThingRequest)"),
            "{protocol}"
        );
    }
    assert_eq!(generate(model("rest-xml"), ALL).unwrap_err(), "the protocol rest-xml");
}

#[test]
fn members_that_are_not_named_are_refused_in_requests() {
    let code = generate(model("json"), "[operations]\nGetThing = [\"Id\"]").unwrap();
    assert!(code.contains(r#"Member::new("Tags", "Tags", Support::No)"#), "{code}");
    let code = generate(model("json"), "[operations]\nGetThing = [\"Id=one\"]").unwrap();
    assert!(code.contains(r#"Member::new("Id", "Id", Support::Only("one"))"#), "{code}");
}

#[test]
fn tables_that_mean_nothing_are_refused() {
    for (table, reason) in [
        ("[operations]\nGetUnicorn = \"*\"", "operation GetUnicorn: not in the model"),
        ("[operations]\nGetThing = [\"Colour\"]", "GetThing: the model has no member Colour"),
        ("[operations]\nGetThing = [\"Id\", \"Id=x\"]", "GetThing: member Id is named twice"),
        (
            "[operations]\nGetThing = \"*\"\n[shapes]\nOther = [\"Id\"]",
            "[shapes] Other: no operation of the table reaches it",
        ),
        (
            "omit_empty = [\"Tags\"]\n[operations]\nGetThing = \"*\"",
            "Tags: no answer of the table's operations reaches it",
        ),
        ("encoded = [\"Thing\"]\n[operations]\nGetThing = \"*\"", "`encoded` is for XML answers"),
    ] {
        assert_eq!(generate(model("json"), table).unwrap_err(), reason, "{table}");
    }
    let unknown = generate(model("json"), "colour = 1\n[operations]\nGetThing = \"*\"").unwrap_err();
    assert!(unknown.contains("unknown field `colour`"), "{unknown}");
}

#[test]
fn every_operation_declares_its_permissions() {
    let declared = |authorization: &str| {
        let table = format!(
            "[operations]\nGetThing = [\"Id\"]\n[resources]\nthing = \"arn:aws:things:{{region}}:{{account}}:thing/{{}}\"\n[authorization]\n{authorization}"
        );
        generate(model("json"), &table)
    };
    let code = declared("GetThing = [\"thing: Id, *\", \"things:Tag thing: @default if Id\"]").unwrap();
    assert!(
        code.contains(r#"Permission { action: "things:GetThing", resource: Some(ResourceType { name: "thing", arn: "arn:aws:things:{region}:{account}:thing/{}" }), members: &[&["Id"]], otherwise: Otherwise::New, only_if: None }"#),
        "{code}"
    );
    assert!(
        code.contains(r#"members: &[], otherwise: Otherwise::Default, only_if: Some(&["Id"]) }"#),
        "{code}"
    );
    declared("GetThing = []").unwrap();
    for (authorization, reason) in [
        ("", "GetThing: the permissions that it asks for are not declared"),
        ("GetThing = [\"box: Id\"]", "box is not in [resources]"),
        ("GetThing = [\"thing: Name\"]", "Name is no text that its requests have"),
        ("GetThing = [\"thing: Tags\"]", "Tags is no text that its requests have"),
        ("GetThing = [\"thing: Id if Tags\"]", "its requests have no Tags"),
        ("GetThing = [\"*\"]\nPutThing = [\"*\"]", "PutThing: not an operation of the table"),
        ("GetThing = [\"thing\"]", "where the resources are named is missing"),
        ("GetThing = [\"thing: *, Id\"]", "* and @default stand last"),
        ("GetThing = [\"*: Id\"]", "* is no resource's type"),
        ("GetThing = [\"Tag thing: Id\"]", "an action looks like iam:PassRole"),
    ] {
        let refused = declared(authorization).unwrap_err();
        assert!(refused.contains(reason), "{authorization}: {refused}");
    }
}

#[test]
fn models_that_cannot_be_spoken_are_refused() {
    let changed = |protocol: &str, pointer: &str, to: Value| {
        let mut model = model(protocol);
        *model.pointer_mut(pointer).unwrap() = to;
        generate(model, ALL)
    };
    let lists = json!({ "type": "list", "member": { "shape": "Tags" } });
    let map = json!({ "type": "map", "key": { "shape": "String" }, "value": { "shape": "String" } });
    assert_eq!(
        changed("query", "/shapes/Names", lists.clone()).unwrap_err(),
        "shape Names: a list of lists in XML"
    );
    changed("json", "/shapes/Names", lists).unwrap();
    let refused = changed("ec2", "/shapes/Tags", map.clone()).unwrap_err();
    assert_eq!(refused, "shape Tags: a map in a request of the ec2 protocol");
    changed("query", "/shapes/Tags", map).unwrap();
    let stream = json!({ "type": "structure", "eventstream": true, "members": {} });
    assert_eq!(changed("json", "/shapes/Names", stream).unwrap_err(), "shape Names: an event stream");
    let missing = json!({ "shape": "Nowhere" });
    assert_eq!(
        changed("json", "/operations/GetThing/output", missing).unwrap_err(),
        "shape Nowhere: not in the model"
    );
    let mut anonymous = model("json");
    anonymous["operations"]["GetThing"]["authtype"] = json!("none");
    assert_eq!(generate(anonymous, ALL).unwrap_err(), "operation GetThing: requests are not signed");
    let mut anonymous = model("query");
    assert!(generate(anonymous.clone(), ALL).unwrap().contains("signed: true"));
    anonymous["operations"]["GetThing"]["authtype"] = json!("none");
    assert!(generate(anonymous, ALL).unwrap().contains("signed: false"));
}

#[test]
fn repetitions_that_the_length_bounds_already_are_open() {
    let shape = |pattern: &str, max: Option<u64>| -> haar_api_codegen::model::Shape {
        serde_json::from_value(json!({ "type": "string", "pattern": pattern, "max": max })).unwrap()
    };
    for (pattern, max, checked) in [
        ("^.{1,100000}$", Some(100_000), "^.{1,}$"),
        ("^.{1,100000}$", Some(100_001), "^.{1,100000}$"),
        ("^.{1,100000}$", None, "^.{1,100000}$"),
        ("a{2}b{3,}c{1,20}{1,20000}", Some(1), "a{2}b{3,}c{1,20}{1,}"),
    ] {
        assert_eq!(shape(pattern, max).checked_pattern().as_deref(), Some(checked), "{pattern}");
    }
}
