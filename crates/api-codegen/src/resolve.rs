//! A model and a table, resolved: what is implemented, reachable and supported.

use std::collections::{BTreeMap, BTreeSet};

use crate::Error;
use crate::model::{Members, Model, Reference, Shape};
use crate::names;
use crate::table::{Rule, Support, Table};

/// Enumerations with more values than this are strings in Rust; their handlers check them.
const GREATEST_ENUM: usize = 60;

/// A protocol of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Ec2,
    Query,
    Json,
    RestJson,
}

impl Protocol {
    /// Whether answers are XML.
    pub fn is_xml(self) -> bool {
        matches!(self, Protocol::Ec2 | Protocol::Query)
    }
}

/// What is implemented of a model.
#[derive(Debug)]
pub struct Api<'a> {
    /// The model.
    pub model: &'a Model,
    /// The table.
    pub table: &'a Table,
    /// The model's protocol.
    pub protocol: Protocol,
    /// Shapes that requests reach through supported members.
    pub inputs: BTreeSet<&'a str>,
    /// Shapes that answers reach.
    pub outputs: BTreeSet<&'a str>,
    /// Input shapes of operations, with the operation that they belong to.
    requests: BTreeMap<&'a str, &'a str>,
}

impl<'a> Api<'a> {
    /// Resolves a table against its model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the table names what the model has not, or an operation needs what the generator
    /// cannot.
    pub fn new(model: &'a Model, table: &'a Table) -> Result<Self, Error> {
        let protocol = match model.metadata.protocol.as_str() {
            "ec2" => Protocol::Ec2,
            "query" => Protocol::Query,
            "json" => Protocol::Json,
            "rest-json" => Protocol::RestJson,
            other => return Err(Error::Unsupported(format!("the protocol {other}"))),
        };
        let mut api = Api {
            model,
            table,
            protocol,
            inputs: BTreeSet::new(),
            outputs: BTreeSet::new(),
            requests: BTreeMap::new(),
        };
        for name in table.operations.keys() {
            let operation = model
                .operations
                .get(name)
                .ok_or_else(|| Error::Unsupported(format!("operation {name}: not in the model")))?;
            if let Some(input) = &operation.input {
                api.requests.insert(&input.shape, name);
            }
        }
        for name in table.operations.keys() {
            let operation = &model.operations[name];
            if let Some(input) = &operation.input {
                let mut reached = std::mem::take(&mut api.inputs);
                api.reach(&input.shape, &mut reached)?;
                api.inputs = reached;
            }
            if let Some(output) = &operation.output {
                let mut reached = std::mem::take(&mut api.outputs);
                api.reach(&output.shape, &mut reached)?;
                api.outputs = reached;
            }
        }
        api.check()?;
        Ok(api)
    }

    /// The shape of that name.
    ///
    /// # Panics
    /// When the model names a shape that it has not, which [`Api::new`] rules out for every reachable one.
    pub fn shape(&self, name: &str) -> &'a Shape {
        &self.model.shapes[name]
    }

    /// What the table says of a member.
    pub fn rule(&self, shape: &str, member: &str) -> Rule<'a> {
        if let Some(operation) = self.requests.get(shape) {
            // The runtime answers `DryRun` of every operation that has it.
            if self.is_dry_run(shape, member) {
                return Rule::Yes;
            }
            if let Some(support) = self.table.operations.get(*operation) {
                return support.rule(member);
            }
        }
        self.table.shapes.get(shape).map_or(Rule::Yes, |support| support.rule(member))
    }

    /// Whether a member is the `DryRun` of a request, which handlers find in their context.
    pub fn is_dry_run(&self, shape: &str, member: &str) -> bool {
        self.protocol == Protocol::Ec2 && member == "DryRun" && self.requests.contains_key(shape)
    }

    /// The members of a structure that have a Rust field.
    pub fn fields(&self, shape: &'a str) -> impl Iterator<Item = (&'a str, &'a Reference, Rule<'a>)> {
        self.shape(shape).members.iter().filter_map(move |(name, reference)| {
            let rule = self.rule(shape, name);
            let field = matches!(rule, Rule::Yes | Rule::Optional) && !self.is_dry_run(shape, name);
            field.then_some((name.as_str(), reference, rule))
        })
    }

    /// Whether a shape is an enum in Rust.
    pub fn is_enum(&self, shape: &Shape) -> bool {
        (1..=GREATEST_ENUM).contains(&shape.values.len())
    }

    /// Whether a field must be there: a required member of a shape that requests reach.
    pub fn is_plain(&self, shape: &str, member: &str) -> bool {
        self.inputs.contains(shape) && self.shape(shape).required.iter().any(|required| required == member)
    }

    /// Whether a field must be boxed, because its structure holds its owner.
    pub fn is_boxed(&self, owner: &'a str, target: &'a str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![target];
        while let Some(name) = open.pop() {
            if name == owner {
                return true;
            }
            if self.shape(name).kind == "structure" && seen.insert(name) {
                open.extend(self.fields(name).map(|(_, reference, _)| reference.shape.as_str()));
            }
        }
        false
    }

    fn reach(&self, name: &'a str, reached: &mut BTreeSet<&'a str>) -> Result<(), Error> {
        let shape = self
            .model
            .shapes
            .get(name)
            .ok_or_else(|| Error::Unsupported(format!("shape {name}: not in the model")))?;
        if !reached.insert(name) {
            return Ok(());
        }
        if shape.eventstream {
            return Err(Error::Unsupported(format!("shape {name}: an event stream")));
        }
        for (member, reference) in &shape.members {
            if matches!(self.rule(name, member), Rule::Yes | Rule::Optional) {
                self.reach(&reference.shape, reached)?;
            }
        }
        for reference in [&shape.member, &shape.key, &shape.value].into_iter().flatten() {
            self.reach(&reference.shape, reached)?;
        }
        Ok(())
    }

    /// Everything that the table names must mean something.
    fn check(&self) -> Result<(), Error> {
        let reachable = |name: &str| self.inputs.contains(name) || self.outputs.contains(name);
        for (operation, support) in &self.table.operations {
            let input = self.model.operations[operation].input.as_ref();
            let members = input.map(|input| &self.shape(&input.shape).members);
            check_members(operation, members, support)?;
        }
        for (name, support) in &self.table.shapes {
            if !reachable(name) {
                return Err(Error::Unsupported(format!(
                    "[shapes] {name}: no operation of the table reaches it"
                )));
            }
            check_members(name, Some(&self.shape(name).members), support)?;
        }
        for name in self.table.omit_empty.iter().chain(&self.table.encoded) {
            if !self.outputs.contains(name.as_str()) {
                return Err(Error::Unsupported(format!(
                    "{name}: no answer of the table's operations reaches it"
                )));
            }
        }
        for operation in self.table.operations.keys() {
            // The endpoint finds an operation without a signature by the names that a form has.
            let unsigned = self.model.operations[operation].authtype.as_deref() == Some("none");
            if unsigned && self.protocol != Protocol::Query {
                return Err(Error::Unsupported(format!("operation {operation}: requests are not signed")));
            }
        }
        self.check_authorization()?;
        if self.protocol.is_xml() {
            self.check_xml()?;
        }
        if !self.table.encoded.is_empty() && !self.protocol.is_xml() {
            return Err(Error::Unsupported("`encoded` is for XML answers".into()));
        }
        let mut types = BTreeSet::new();
        for name in self.inputs.union(&self.outputs).filter(|name| self.has_type(name)) {
            if !types.insert(names::type_name(name)) {
                return Err(Error::Unsupported(format!("shape {name}: another has the same Rust name")));
            }
        }
        Ok(())
    }

    /// Every operation says which permissions it asks for, in terms of its request.
    fn check_authorization(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Unsupported(format!("[authorization] {what}")));
        for operation in self.table.operations.keys() {
            let Some(permissions) = self.table.authorization.get(operation) else {
                return wrong(format!(
                    "{operation}: the permissions that it asks for are not declared (see CONTRIBUTING.md, \"Adding an operation\")"
                ));
            };
            for permission in permissions {
                if let Some(resource) = &permission.resource
                    && !self.table.resources.contains_key(resource)
                {
                    return wrong(format!("{operation}: {resource} is not in [resources]"));
                }
                for path in &permission.members {
                    match self.member(operation, path) {
                        Some(shape) if shape.kind == "string" => {}
                        _ => return wrong(format!("{operation}: {path} is no text that its requests have")),
                    }
                }
                if let Some(path) =
                    permission.only_if.as_ref().filter(|path| self.member(operation, path).is_none())
                {
                    return wrong(format!("{operation}: its requests have no {path}"));
                }
            }
        }
        match self.table.authorization.keys().find(|name| !self.table.operations.contains_key(*name)) {
            Some(name) => wrong(format!("{name}: not an operation of the table")),
            None => Ok(()),
        }
    }

    /// The shape that a path of honoured members leads to from an operation's request, through lists.
    fn member(&self, operation: &str, path: &str) -> Option<&'a Shape> {
        let elements = |mut shape: &'a Shape| {
            while let Some(member) = &shape.member {
                shape = self.shape(&member.shape);
            }
            shape
        };
        let mut name = self.model.operations[operation].input.as_ref()?.shape.as_str();
        for part in path.split('.') {
            // A list's elements are a structure of their own name.
            while let Some(member) = &self.shape(name).member {
                name = &member.shape;
            }
            if !matches!(self.rule(name, part), Rule::Yes | Rule::Optional) {
                return None;
            }
            name = &self.shape(name).members.get(part)?.shape;
        }
        Some(elements(self.shape(name)))
    }

    /// XML answers have no lists of lists, and `ec2` has no maps in requests.
    fn check_xml(&self) -> Result<(), Error> {
        for name in &self.outputs {
            let shape = self.shape(name);
            for reference in [&shape.member, &shape.value].into_iter().flatten() {
                if matches!(self.shape(&reference.shape).kind.as_str(), "list" | "map") {
                    return Err(Error::Unsupported(format!("shape {name}: a list of lists in XML")));
                }
            }
        }
        match self.inputs.iter().find(|name| self.shape(name).kind == "map") {
            Some(name) if self.protocol == Protocol::Ec2 => {
                Err(Error::Unsupported(format!("shape {name}: a map in a request of the ec2 protocol")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a shape has a Rust type of its own.
    pub fn has_type(&self, name: &str) -> bool {
        let shape = self.shape(name);
        match shape.kind.as_str() {
            "structure" => !shape.document,
            "string" => self.is_enum(shape),
            _ => false,
        }
    }
}

fn check_members(owner: &str, members: Option<&Members>, support: &Support) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for name in support.named() {
        if members.is_none_or(|members| members.get(name).is_none()) {
            return Err(Error::Unsupported(format!("{owner}: the model has no member {name}")));
        }
        if !seen.insert(name) {
            return Err(Error::Unsupported(format!("{owner}: member {name} is named twice")));
        }
    }
    Ok(())
}
