//! The OpenAPI 3.1 document, made of the table of routes and of the types that the handlers read and write.

use super::routes::{self, Open, Route};
use axum::Json;
use model::api::IDENTITY_TOKEN_HEADER;
use model::api::error::ErrorBody;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// How a type looks as JSON.
#[derive(Clone, Copy)]
pub struct Shape(fn(&mut SchemaGenerator) -> Schema);

impl Shape {
    /// The shape of a type.
    pub fn of<T: JsonSchema>() -> Self {
        Self(|generator| generator.subschema_for::<T>())
    }
}

/// `GET /openapi.json`.
pub async fn serve() -> Json<&'static Value> {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    Json(DOCUMENT.get_or_init(|| document(&routes::all())))
}

fn document(routes: &[Route]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|s| s.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let path = route.path.replace("{*", "{");
        let operation = operation(route, &mut generator);
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[route.method] = operation;
    }
    let error = generator.subschema_for::<ErrorBody>();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Gatehouse",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "VMs, the commands and files in them, their private networks, the names that lead to them, and who may use them.",
        },
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": { "type": "http", "scheme": "bearer" },
                "token": { "type": "apiKey", "in": "header", "name": IDENTITY_TOKEN_HEADER },
            },
            "responses": { "Error": { "description": "Refused or failed", "content": content(&error) } },
            "schemas": schemas,
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let answer = (route.answer.0)(generator);
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters(route, generator),
        "responses": {
            "200": { "description": "Done", "content": content(&answer) },
            "default": { "$ref": "#/components/responses/Error" },
        },
    });
    if route.open != Open::No {
        operation["security"] = json!([{ "key": [] }, { "token": [] }]);
    }
    if let Some(request) = route.request {
        let request = request.0(generator);
        operation["requestBody"] = json!({ "content": content(&request) });
    }
    operation
}

fn content(schema: &Schema) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?.strip_suffix('}')?.trim_start_matches('*');
        Some(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
    });
    let mut all: Vec<Value> = in_path.collect();
    let Some(query) = route.query else { return all };
    let schema = query.0(generator);
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    let fields = name
        .and_then(|name| generator.definitions().get(name))
        .and_then(|schema| schema.get("properties"))
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    all.extend(
        fields.into_iter().map(|(name, schema)| json!({ "name": name, "in": "query", "schema": schema })),
    );
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_every_reference_leads_somewhere() {
        let routes = routes::all();
        let document = document(&routes);
        for route in &routes {
            let operation = &document["paths"][route.path.replace("{*", "{")][route.method];
            assert_eq!(operation["summary"], route.summary, "{} {}", route.method, route.path);
            assert_eq!(operation.get("requestBody").is_some(), route.request.is_some());
            assert_eq!(operation.get("security").is_some(), route.open != Open::No, "{}", route.path);
        }
        let text = document.to_string();
        for reference in
            text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().expect("closed"))
        {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        let nic = &document["components"]["schemas"]["Nic"]["properties"];
        assert!(nic["mode"]["type"] == "string" && nic["ipv4"].is_object(), "{nic}");
        let query = &document["paths"]["/v1/vms"]["get"]["parameters"];
        assert!(
            query.as_array().expect("list").iter().any(|parameter| parameter["name"] == "vmState"),
            "{query}"
        );
    }
}
