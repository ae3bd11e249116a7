//! Step 4, channel: the server's API as an OpenAPI document, for those who make clients of it.
//!
//! The addresses stand in `endpoints`, and the documents' schemas come from the types that the handlers read and write.

mod endpoints;

use crate::auth::Role;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use protocol::digest::Sha256;
use protocol::id::{Channel, Group, NodeId};
use protocol::lock::ClientId;
use protocol::rollout::GrantPhase;
use protocol::wire::{ErrorBody, FleetLockError, SCHEMA};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use utoipa::ToSchema;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{Response as Answer, ResponseBuilder};
use utoipa::openapi::schema::{ComponentsBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, InfoBuilder, OpenApiBuilder, Ref, RefOr, Required};

/// The document as it is served.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));

/// Every failure that has an [`ErrorBody`], by its status.
const FAILURES: [(u16, &str); 13] = [
    (400, "The request is wrong and stays so."),
    (401, "No credential, or one that is not valid."),
    (403, "The credential is valid and does not suffice."),
    (404, "There is no such thing."),
    (405, "The address does not take this method."),
    (408, "The body came too slowly."),
    (409, "The server's state is another one than the request assumes."),
    (413, "The body is too long."),
    (416, "The range is not inside the payload."),
    (429, "Too many requests; ask again later."),
    (500, "The server's own fault; its log says why."),
    (503, "Not now; the same request may well succeed a little later."),
    (507, "The disk is full."),
];

/// `GET /openapi.json`.
pub(super) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

/// The document, as it is served.
#[must_use]
pub fn text() -> &'static str {
    &DOCUMENT
}

/// A schema with a name, and those that it refers to.
#[derive(Clone)]
struct Named {
    name: String,
    all: Vec<(String, RefOr<Schema>)>,
}

impl Named {
    fn of<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut all = vec![(name.clone(), T::schema())];
        T::schemas(&mut all);
        Self { name, all }
    }

    fn reference(&self) -> RefOr<Schema> {
        Ref::from_schema_name(&self.name).into()
    }
}

/// Who may ask.
#[derive(Clone, Copy)]
enum Who {
    Anybody,
    /// The node itself; whether it must show its credential.
    Node(bool),
    /// A token of at least this role.
    Operator(Role),
}

/// What an answer holds.
#[derive(Clone)]
enum Holds {
    Nothing,
    Document(Named),
    Plain(&'static str),
}

/// A parameter that is not in the path.
#[derive(Clone)]
struct Parameter {
    name: &'static str,
    place: ParameterIn,
    required: bool,
    schema: RefOr<Schema>,
    what: &'static str,
}

/// One address with one method.
#[derive(Clone)]
struct Endpoint {
    method: HttpMethod,
    path: &'static str,
    what: &'static str,
    who: Who,
    body: Option<Holds>,
    parameters: Vec<Parameter>,
    answers: Vec<(u16, &'static str, Holds)>,
    failures: Vec<u16>,
    /// What a failure holds.
    failure: Named,
    /// Schemas of parameters.
    named: Vec<Named>,
}

impl Endpoint {
    fn new(method: HttpMethod, path: &'static str, what: &'static str) -> Self {
        let failures = if path.contains('{') { vec![400] } else { Vec::new() };
        Self {
            method,
            path,
            what,
            who: Who::Anybody,
            body: None,
            parameters: Vec::new(),
            answers: Vec::new(),
            // What everything that listens may say.
            failures: [failures, vec![429, 500, 503]].concat(),
            failure: Named::of::<ErrorBody>(),
            named: Vec::new(),
        }
    }

    fn fails(mut self, statuses: &[u16]) -> Self {
        self.failures.extend(statuses);
        self
    }

    fn node(self, must: bool) -> Self {
        let mut node = Self { who: Who::Node(must), ..self }.fails(&[401, 403]);
        node.parameters.push(Parameter {
            name: "Flipside-Enrolment",
            place: ParameterIn::Header,
            required: false,
            schema: ObjectBuilder::new().schema_type(Type::String).into(),
            what: "An enrolment token, for a server that answers not-enrolled (401).",
        });
        node
    }

    fn operator(self, role: Role) -> Self {
        Self { who: Who::Operator(role), ..self }.fails(&[401, 403])
    }

    fn takes<T: ToSchema>(self) -> Self {
        Self { body: Some(Holds::Document(Named::of::<T>())), ..self }.fails(&[400, 408, 413])
    }

    fn takes_bytes(self) -> Self {
        Self { body: Some(Holds::Plain("application/octet-stream")), ..self }.fails(&[400, 408, 413])
    }

    fn answer(mut self, status: u16, what: &'static str, holds: Holds) -> Self {
        self.answers.push((status, what, holds));
        self
    }

    fn gives<T: ToSchema>(self) -> Self {
        self.answer(200, "As asked.", Holds::Document(Named::of::<T>()))
    }

    fn done(self) -> Self {
        self.answer(204, "Done, and durable.", Holds::Nothing)
    }

    fn text(self, media: &'static str) -> Self {
        self.answer(200, "As asked.", Holds::Plain(media))
    }

    /// Where a line of text says why it is not so.
    fn or_not(mut self) -> Self {
        self.failures.retain(|status| *status != 503);
        self.answer(503, "It is not so, and why.", Holds::Plain("text/plain"))
    }

    fn file(self, media: &'static str, failures: &[u16]) -> Self {
        self.text(media)
            .answer(304, "The client has it already, by its ETag.", Holds::Nothing)
            .fails(failures)
    }

    fn ranges(mut self) -> Self {
        let schema = RefOr::from(ObjectBuilder::new().schema_type(Type::String));
        let what = "One range of bytes.";
        self.parameters.push(Parameter {
            name: "Range",
            place: ParameterIn::Header,
            required: false,
            schema,
            what,
        });
        self.answer(206, "The part that was asked for.", Holds::Plain("application/octet-stream"))
            .fails(&[416])
    }

    fn asks<T: ToSchema>(mut self, name: &'static str, required: bool, what: &'static str) -> Self {
        let named = Named::of::<T>();
        let schema = named.reference();
        self.parameters.push(Parameter { name, place: ParameterIn::Query, required, schema, what });
        self.named.push(named);
        self.fails(&[400])
    }

    fn asks_plain(mut self, name: &'static str, schema: RefOr<Schema>, what: &'static str) -> Self {
        self.parameters.push(Parameter { name, place: ParameterIn::Query, required: false, schema, what });
        self.fails(&[400])
    }

    /// Both requests of that protocol, whose failures have a form of their own.
    fn fleetlock<T: ToSchema>(mut self) -> Self {
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true"]));
        self.parameters.push(Parameter {
            name: "fleet-lock-protocol",
            place: ParameterIn::Header,
            required: true,
            schema: schema.into(),
            what: "Keeps browsers out.",
        });
        self.failure = Named::of::<FleetLockError>();
        self.takes::<T>().answer(200, "So it is.", Holds::Nothing).fails(&[403, 409])
    }
}

/// A day, as in `2026-12-24`.
fn day() -> RefOr<Schema> {
    let format = SchemaFormat::KnownFormat(KnownFormat::Date);
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
}

/// Phases of grants, as in `failed,rolled-back`.
fn phases() -> RefOr<Schema> {
    let one = GrantPhase::ALL.map(GrantPhase::as_str).join("|");
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(format!("^({one})(,({one}))*$"))).into()
}

/// A whole number from 0 to `max`.
fn number(max: u64) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0u64)).maximum(Some(max)).into()
}

/// What is said of whoever asks a lock: also of FleetLock v1's clients.
const CLIENTS: [&str; 3] = ["/remove", "/credential", "/revocation"];

/// The schema of a path's variable part.
fn segment(name: &str, path: &str) -> Option<Named> {
    match name {
        "channel" => Some(Named::of::<Channel>()),
        "group" => Some(Named::of::<Group>()),
        "digest" => Some(Named::of::<Sha256>()),
        "node" if CLIENTS.iter().any(|end| path.ends_with(end)) => Some(Named::of::<ClientId>()),
        "node" => Some(Named::of::<NodeId>()),
        _ => None,
    }
}

fn tag(path: &str) -> &'static str {
    match path.split('/').nth(1) {
        Some("v1" | "v2") => "nodes",
        Some("api") => "operators",
        _ => "server",
    }
}

fn content(holds: &Holds) -> Option<(&'static str, Content)> {
    match holds {
        Holds::Nothing => None,
        Holds::Document(named) => Some(("application/json", Content::new(Some(named.reference())))),
        Holds::Plain(media @ "application/json") => {
            Some((media, Content::new(Some(ObjectBuilder::new().schema_type(Type::Object)))))
        }
        Holds::Plain(media) => {
            Some((media, Content::new(Some(ObjectBuilder::new().schema_type(Type::String)))))
        }
    }
}

fn answer(what: &str, holds: &Holds) -> Answer {
    let response = ResponseBuilder::new().description(what);
    match content(holds) {
        Some((media, content)) => response.content(media, content).build(),
        None => response.build(),
    }
}

/// The name of an operation: `put-api-v1-channels-channel`.
fn name(endpoint: &Endpoint) -> String {
    let words = endpoint.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let method = match endpoint.method {
        HttpMethod::Post => "post",
        HttpMethod::Put => "put",
        HttpMethod::Delete => "delete",
        _ => "get",
    };
    [method].into_iter().chain(words).collect::<Vec<_>>().join("-")
}

fn operation(endpoint: &Endpoint) -> OperationBuilder {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(name(endpoint)))
        .summary(Some(endpoint.what))
        .tag(tag(endpoint.path));
    let parts = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for part in parts {
        let schema = segment(part, endpoint.path).map_or_else(
            || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).into(),
            |named| named.reference(),
        );
        let parameter = ParameterBuilder::new().name(part).parameter_in(ParameterIn::Path);
        operation = operation.parameter(parameter.required(Required::True).schema(Some(schema)));
    }
    for Parameter { name, place, required, schema, what } in &endpoint.parameters {
        let required = if *required { Required::True } else { Required::False };
        let parameter = ParameterBuilder::new().name(*name).parameter_in(place.clone()).required(required);
        operation = operation.parameter(parameter.description(Some(*what)).schema(Some(schema.clone())));
    }
    if let Some((media, content)) = endpoint.body.as_ref().and_then(content) {
        let body = RequestBodyBuilder::new().content(media, content).required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    for (status, what, holds) in &endpoint.answers {
        operation = operation.response(status.to_string(), answer(what, holds));
    }
    for (status, what) in FAILURES.iter().filter(|(status, _)| endpoint.failures.contains(status)) {
        operation =
            operation.response(status.to_string(), answer(what, &Holds::Document(endpoint.failure.clone())));
    }
    match endpoint.who {
        Who::Anybody => operation,
        Who::Node(true) => operation.security(SecurityRequirement::new("node", [""; 0])),
        Who::Node(false) => operation
            .securities(Some([SecurityRequirement::new("node", [""; 0]), SecurityRequirement::default()])),
        Who::Operator(role) => operation.security(SecurityRequirement::new("operator", [role.as_str()])),
    }
}

/// The document.
fn document() -> Value {
    let endpoints = endpoints::all();
    let mut schemas: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    let mut paths: Paths = PathsBuilder::new().build();
    for endpoint in &endpoints {
        let parts = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let segments = parts.filter_map(|part| segment(part, endpoint.path));
        let documents = endpoint.answers.iter().map(|(_, _, holds)| holds).chain(&endpoint.body);
        let documents = documents.filter_map(|holds| match holds {
            Holds::Document(named) => Some(named.clone()),
            _ => None,
        });
        let named = segments.chain(documents).chain([endpoint.failure.clone()]);
        schemas.extend(named.chain(endpoint.named.clone()).flat_map(|named| named.all));
        paths.add_path_operation(endpoint.path, vec![endpoint.method.clone()], operation(endpoint));
    }
    let bearer = |what: &str| {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(what));
        SecurityScheme::Http(scheme.build())
    };
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme(
            "operator",
            bearer("A token of update-server token create; the role is the least that is enough."),
        )
        .security_scheme("node", bearer("The node's own secret: flipside_node_ and 64 hexadecimal digits."));
    let info = InfoBuilder::new()
        .title("Flipside update-server")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Every failure is a status of 4xx or 5xx with an ErrorBody; a method that an address does not take is 405. \
             Documents carry a schema number; receivers ignore fields that they do not know. \
             FleetLock v1's addresses are served behind any prefix.",
        ));
    let made = OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build();
    let mut document = serde_json::to_value(made).unwrap_or_default();
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.values_mut().for_each(tidy);
        // utoipa takes jiff's timestamps for any text.
        schemas.remove("String");
        let timestamp = serde_json::json!({ "type": "string", "format": "date-time", "description": "A time, with its offset." });
        schemas.insert("Timestamp".to_owned(), timestamp);
    }
    document
}

/// Names the one number that `schema` may be, and takes rustdoc's links out of descriptions.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text =
                    text.replace("[`", "`").replace("`]", "`").replace("super::", "").replace("crate::", "");
            }
            if let Some(to) = fields.get_mut("$ref").filter(|to| **to == "#/components/schemas/String") {
                *to = "#/components/schemas/Timestamp".into();
            }
            if let Some(number) = fields.get_mut("properties").and_then(|all| all.get_mut("schema"))
                && number["type"] == "integer"
            {
                number["const"] = SCHEMA.into();
            }
            fields.values_mut().for_each(tidy);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The addresses in the router, as it is written, and those in the document are the same. `tests/bad_input.rs` asks the
    /// server which methods each one takes.
    #[test]
    fn every_route_is_described_and_every_description_is_of_a_route() {
        let written = include_str!("mod.rs").split("/// What an address says").next().unwrap();
        let routes: BTreeSet<String> = written
            .split(".route(\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().replace("{*", "{"))
            .collect();
        assert!(routes.len() > 25, "the routes are written in another way now: {routes:?}");
        let document = document();
        let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        // They are served behind any prefix and so are no routes.
        let fleetlock = ["/v1/pre-reboot", "/v1/steady-state"].map(str::to_owned);
        assert_eq!(described, routes.into_iter().chain(fleetlock).collect());
    }

    /// Whatever the document refers to is in it.
    #[test]
    fn references_lead_somewhere() {
        fn walk(value: &Value, root: &Value) {
            match value {
                Value::Array(items) => items.iter().for_each(|item| walk(item, root)),
                Value::Object(fields) => {
                    if let Some(Value::String(to)) = fields.get("$ref") {
                        assert!(root.pointer(&to[1..]).is_some(), "{to}");
                    }
                    fields.values().for_each(|value| walk(value, root));
                }
                _ => {}
            }
        }
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        walk(&document, &document);
        assert_eq!(document["components"]["schemas"]["UpdateCheck"]["properties"]["schema"]["const"], 1);
        assert_eq!(document["components"]["schemas"]["Timestamp"]["format"], "date-time");
        assert!(!document.to_string().contains("[`"), "links of rustdoc are no use here");
    }
}
