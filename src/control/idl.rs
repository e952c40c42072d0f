//! Holds the code to the descriptions in the `.varlink` files: what is sent must be what they say, and the reverse.
//!
//! The grammar is that of <https://varlink.org/Interface-Definition>.

use super::call::{Amount, Call, Failure, INTERFACE, INTERFACES, Reply, SERVICE};
use super::wire;
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A parsed description.
#[derive(Debug, Default)]
struct Interface {
    name: String,
    types: BTreeMap<String, Type>,
    methods: BTreeMap<String, (Fields, Fields)>,
    errors: BTreeMap<String, Fields>,
}

type Fields = Vec<(String, Type)>;

#[derive(Debug)]
enum Type {
    Bool,
    Int,
    Text,
    Named(String),
    Maybe(Box<Type>),
    Array(Box<Type>),
    Struct(Fields),
    Enum(Vec<String>),
}

fn interface(name: &str) -> Interface {
    let (_, text) = INTERFACES.iter().find(|(known, _)| *known == name).unwrap();
    parse(text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parse(text: &str) -> Result<Interface, String> {
    let mut tokens = tokens(text)?.into_iter().peekable();
    let tokens = &mut tokens;
    expect(tokens, "interface")?;
    let mut interface = Interface {
        name: tokens.next().unwrap_or_default(),
        ..Interface::default()
    };
    let mut seen = BTreeSet::new();
    while let Some(keyword) = tokens.next() {
        let name = tokens.next().unwrap_or_default();
        if !name.starts_with(|first: char| first.is_ascii_uppercase()) || !is_word(&name) {
            return Err(format!("bad name `{name}` of a {keyword}"));
        }
        if !seen.insert(name.clone()) {
            return Err(format!("`{name}` twice"));
        }
        match keyword.as_str() {
            "type" => {
                let kind = parenthesized(tokens)?;
                interface.types.insert(name, kind);
            }
            "method" => {
                let input = fields(tokens)?;
                expect(tokens, "->")?;
                interface.methods.insert(name, (input, fields(tokens)?));
            }
            "error" => {
                let fields = fields(tokens)?;
                interface.errors.insert(name, fields);
            }
            other => return Err(format!("`{other}` is no keyword")),
        }
    }
    Ok(interface)
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<String>>;

fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        let mut rest = line.split('#').next().unwrap_or_default().trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                '(' | ')' | ',' | ':' | '?' => 1,
                '[' if rest.starts_with("[]") => 2,
                '-' if rest.starts_with("->") => 2,
                _ => rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
                    .unwrap_or(rest.len()),
            };
            if length == 0 {
                return Err(format!("unexpected `{first}` in `{line}`"));
            }
            tokens.push(rest[..length].to_owned());
            rest = rest[length..].trim_start();
        }
    }
    Ok(tokens)
}

fn expect(tokens: &mut Tokens, want: &str) -> Result<(), String> {
    match tokens.next() {
        Some(token) if token == want => Ok(()),
        other => Err(format!("expected `{want}`, found {other:?}")),
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.ends_with('_')
        && !text.contains("__")
}

fn fields(tokens: &mut Tokens) -> Result<Fields, String> {
    match parenthesized(tokens)? {
        Type::Struct(fields) => Ok(fields),
        other => Err(format!("expected fields, found {other:?}")),
    }
}

/// A struct or an enum: the second token tells which.
fn parenthesized(tokens: &mut Tokens) -> Result<Type, String> {
    expect(tokens, "(")?;
    let mut fields = Vec::new();
    let mut words = Vec::new();
    if tokens.next_if_eq(")").is_some() {
        return Ok(Type::Struct(fields));
    }
    loop {
        let name = tokens.next().unwrap_or_default();
        if !is_word(&name) {
            return Err(format!("bad field name `{name}`"));
        }
        if tokens.next_if_eq(":").is_some() {
            fields.push((name, kind(tokens)?));
        } else {
            words.push(name);
        }
        match tokens.next().as_deref() {
            Some(",") => {}
            Some(")") if words.is_empty() => return Ok(Type::Struct(fields)),
            Some(")") if fields.is_empty() => return Ok(Type::Enum(words)),
            other => return Err(format!("expected `,` or `)`, found {other:?}")),
        }
    }
}

fn kind(tokens: &mut Tokens) -> Result<Type, String> {
    if tokens.next_if_eq("?").is_some() {
        return Ok(Type::Maybe(Box::new(kind(tokens)?)));
    }
    if tokens.next_if_eq("[]").is_some() {
        return Ok(Type::Array(Box::new(kind(tokens)?)));
    }
    if tokens.peek().is_some_and(|token| token == "(") {
        return parenthesized(tokens);
    }
    match tokens.next().as_deref() {
        Some("bool") => Ok(Type::Bool),
        Some("int") => Ok(Type::Int),
        Some("string") => Ok(Type::Text),
        Some(name) if is_word(name) => Ok(Type::Named(name.to_owned())),
        other => Err(format!("expected a type, found {other:?}")),
    }
}

impl Interface {
    fn check(&self, value: &Value, kind: &Type) -> Result<(), String> {
        let fits = match kind {
            Type::Bool => value.is_boolean(),
            Type::Int => value.is_i64() || value.is_u64(),
            Type::Text => value.is_string(),
            Type::Enum(words) => value
                .as_str()
                .is_some_and(|text| words.iter().any(|word| word == text)),
            Type::Maybe(_) if value.is_null() => true,
            Type::Maybe(inner) => return self.check(value, inner),
            Type::Named(name) => {
                let kind = self.types.get(name).ok_or(format!("no type `{name}`"))?;
                return self.check(value, kind);
            }
            Type::Array(inner) => match value {
                Value::Array(items) => {
                    return items.iter().try_for_each(|item| self.check(item, inner));
                }
                _ => false,
            },
            Type::Struct(fields) => match value {
                Value::Object(map) => return self.check_fields(map, fields),
                _ => false,
            },
        };
        if fits {
            Ok(())
        } else {
            Err(format!("{value} is not {kind:?}"))
        }
    }

    fn check_fields(&self, map: &Map<String, Value>, fields: &Fields) -> Result<(), String> {
        if let Some(unknown) = map
            .keys()
            .find(|key| fields.iter().all(|(name, _)| name != *key))
        {
            return Err(format!("`{unknown}` is not described"));
        }
        for (name, kind) in fields {
            match map.get(name) {
                Some(value) => self
                    .check(value, kind)
                    .map_err(|error| format!("`{name}`: {error}"))?,
                None if matches!(kind, Type::Maybe(_)) => {}
                None => return Err(format!("`{name}` is missing")),
            }
        }
        Ok(())
    }

    fn resolve(&self, kind: &Type) {
        match kind {
            Type::Named(name) => assert!(self.types.contains_key(name), "no type `{name}`"),
            Type::Maybe(inner) | Type::Array(inner) => self.resolve(inner),
            Type::Struct(fields) => fields.iter().for_each(|(_, kind)| self.resolve(kind)),
            Type::Bool | Type::Int | Type::Text | Type::Enum(_) => {}
        }
    }
}

/// The method that gives this reply, in its interface.
fn method_of(reply: &Reply) -> (&'static str, &'static str) {
    match reply {
        Reply::Status(_) => (INTERFACE, "Status"),
        Reply::Done { .. } | Reply::Progress { .. } => (INTERFACE, "Start"),
        Reply::Changes { .. } => (INTERFACE, "Apply"),
        Reply::Info { .. } => (SERVICE, "GetInfo"),
        Reply::Description(_) => (SERVICE, "GetInterfaceDescription"),
    }
}

fn message(out: &[u8]) -> Map<String, Value> {
    let (nul, text) = out.split_last().unwrap();
    assert_eq!(*nul, 0);
    serde_json::from_slice(text).unwrap()
}

fn parameters(message: &Map<String, Value>) -> &Map<String, Value> {
    message["parameters"].as_object().unwrap()
}

fn check_call(call: &Call) -> Result<(), String> {
    let mut out = Vec::new();
    wire::encode_call(call, false, false, &mut out);
    let message = message(&out);
    let (name, method) = message["method"]
        .as_str()
        .unwrap()
        .rsplit_once('.')
        .unwrap();
    let interface = interface(name);
    let (input, _) = interface
        .methods
        .get(method)
        .ok_or(format!("no method {method}"))?;
    interface.check_fields(parameters(&message), input)
}

fn check_reply(reply: &Result<Reply, Failure>) -> Result<(), String> {
    let mut out = Vec::new();
    wire::encode(reply, false, &mut out);
    let message = message(&out);
    match reply {
        Ok(reply) => {
            let (name, method) = method_of(reply);
            let interface = interface(name);
            interface.check_fields(parameters(&message), &interface.methods[method].1)
        }
        Err(_) => {
            let (name, error) = message["error"].as_str().unwrap().rsplit_once('.').unwrap();
            let interface = interface(name);
            let fields = interface
                .errors
                .get(error)
                .ok_or(format!("no error {error}"))?;
            interface.check_fields(parameters(&message), fields)
        }
    }
}

#[test]
fn descriptions_are_well_formed_and_complete_in_themselves() {
    for (name, _) in INTERFACES {
        let interface = interface(name);
        assert_eq!(interface.name, name);
        interface
            .types
            .values()
            .for_each(|kind| interface.resolve(kind));
        for (input, output) in interface.methods.values() {
            input
                .iter()
                .chain(output)
                .for_each(|(_, kind)| interface.resolve(kind));
        }
        interface
            .errors
            .values()
            .flatten()
            .for_each(|(_, kind)| interface.resolve(kind));
    }
}

#[test]
fn every_described_method_is_answered_and_every_described_error_is_known() {
    for (name, _) in INTERFACES {
        let interface = interface(name);
        for method in interface.methods.keys() {
            // Without its parameters: it may be refused for that, and for nothing else.
            let call = Call::read(&format!("{name}.{method}"), None);
            assert!(
                matches!(call, Ok(_) | Err(Failure::InvalidParameter { .. })),
                "{method}: {call:?}"
            );
        }
        for error in interface.errors.keys() {
            let full = format!("{name}.{error}");
            let mut decoder = wire::ReplyDecoder::new();
            decoder.feed(format!("{{\"error\":\"{full}\"}}\0").as_bytes());
            let failure = decoder.next().unwrap().unwrap().reply.unwrap_err();
            assert_eq!(failure.error(), full);
        }
    }
}

#[test]
fn methods_that_act_give_the_same_reply() {
    let interface = interface(INTERFACE);
    let output = |method: &str| format!("{:?}", interface.methods[method].1);
    for method in [
        "Stop", "Restart", "Reload", "Scale", "Signal", "Shutdown", "Upgrade",
    ] {
        assert_eq!(output(method), output("Start"), "{method}");
    }
}

#[test]
fn apply_and_plan_give_changes_and_apply_its_progress() {
    let interface = interface(INTERFACE);
    let fits = |method: &str, reply: Reply| {
        let mut out = Vec::new();
        wire::encode(&Ok(reply), false, &mut out);
        interface.check_fields(parameters(&message(&out)), &interface.methods[method].1)
    };
    let changes = || Reply::Changes {
        changes: Vec::new(),
        message: None,
    };
    let progress = || Reply::Progress {
        text: "1 of 2".into(),
        unit: "web".into(),
        done: 1,
        wanted: 2,
    };
    assert_eq!(fits("Plan", changes()), Ok(()));
    assert_eq!(fits("Apply", changes()), Ok(()));
    assert_eq!(fits("Apply", progress()), Ok(()));
    assert!(fits("Plan", progress()).is_err());
}

#[test]
fn every_parameter_that_is_described_is_taken() {
    let call =
        |method: &str, text: &str| Call::read(method, Some(serde_json::from_str(text).unwrap()));
    let interface = interface(INTERFACE);
    for (method, (input, _)) in &interface.methods {
        for (name, _) in input {
            let full = format!("{INTERFACE}.{method}");
            // An object fits no parameter, so one that is looked at is refused by name.
            let mut given: Map<String, Value> = serde_json::from_str(
                r#"{"name":"web","signal":"HUP","names":["web"],"numprocesses":1}"#,
            )
            .unwrap();
            given.retain(|key, _| input.iter().any(|(name, _)| name == key));
            given.insert(name.clone(), serde_json::json!({}));
            let answer = call(&full, &Value::Object(given).to_string());
            let refusal = Failure::InvalidParameter {
                parameter: name.clone(),
            };
            assert_eq!(answer, Err(refusal), "{method}");
        }
    }
    assert!(matches!(
        call("io.tentpole.Manager.Scale", r#"{"name":"web","by":2}"#),
        Ok(Call::Scale {
            to: Amount::By(2),
            ..
        })
    ));
}

#[test]
fn a_broken_description_is_noticed() {
    for (text, want) in [
        ("interface a.b\ntype x (a: int)", "bad name"),
        ("interface a.b\ntype X (a: int)\nerror X ()", "twice"),
        ("interface a.b\ntype X (a: int, b)", "expected `,` or `)`"),
        ("interface a.b\ntype X (_a: int)", "bad field name"),
        ("interface a.b\nmethod X () (a: int)", "expected `->`"),
        ("interface a.b\ntype X (a: int;)", "unexpected"),
        ("interface a.b\nthing X ()", "no keyword"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(want), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn every_call_is_as_it_is_described(call in wire::tests::calls()) {
        prop_assert_eq!(check_call(&call), Ok(()));
    }

    #[test]
    fn every_reply_and_every_error_is_as_it_is_described(reply in wire::tests::replies()) {
        prop_assert_eq!(check_reply(&reply), Ok(()));
    }
}
