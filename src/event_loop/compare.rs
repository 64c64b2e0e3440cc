//! Compares two specifications and finds the first field that differs.

use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};

use crate::kinds::WatchKind;
use crate::proto::{self, ProcessSpec, WatchSpec, watch_spec::Spec};

/// Returns the path of the first field in which two specifications differ; `None` if they are
/// equal.
///
/// Both must have the form of [`Registration::spec`](super::Registration::spec), without slots and
/// without what a process inherits from its client, so these are not compared. All other fields
/// are, in the order of the `.proto` file. A oneof counts as one field, under its own name.
pub(super) fn difference(a: &WatchSpec, b: &WatchSpec) -> Option<String> {
    if a == b {
        return None;
    }
    let (Some(first), Some(second)) = (&a.spec, &b.spec) else {
        return Some("spec".to_owned());
    };
    let kind = WatchKind::of(first);
    if kind != WatchKind::of(second) {
        return Some("spec".to_owned());
    }
    if let (Spec::Process(first), Spec::Process(second)) = (first, second)
        && (first.terminal.is_some() || second.terminal.is_some())
    {
        return difference(&without_terminal(first), &without_terminal(second));
    }
    let field = different_field(kind, a, b);
    Some(match field {
        Some(field) => format!("spec.{kind}.{field}"),
        // The difference is in a field of a later version of the protocol.
        None => format!("spec.{kind}"),
    })
}

/// Returns a process without what tells whether and how it has a terminal.
fn without_terminal(process: &ProcessSpec) -> WatchSpec {
    let mut without = process.clone();
    (without.stdin, without.stdout, without.stderr) = (0, 0, 0);
    (without.terminal, without.stdin_water_marks) = (None, None);
    let spec = Some(Spec::Process(without));
    WatchSpec { spec }
}

fn different_field(kind: WatchKind, a: &WatchSpec, b: &WatchSpec) -> Option<String> {
    let whole = proto::descriptors().get_message_by_name("evloopd.v1.WatchSpec")?;
    let (a, b) = (message(&whole, kind, a)?, message(&whole, kind, b)?);
    let descriptor = a.descriptor();
    let field = descriptor.fields().find(|field| {
        a.has_field(field) != b.has_field(field) || a.get_field(field) != b.get_field(field)
    })?;
    // An `optional` field is the only member of a synthetic oneof.
    let oneof = field
        .containing_oneof()
        .filter(|oneof| !oneof.is_synthetic());
    Some(oneof.map_or_else(|| field.name().to_owned(), |oneof| oneof.name().to_owned()))
}

/// Returns the message for `kind` out of a specification of that kind.
fn message(whole: &MessageDescriptor, kind: WatchKind, spec: &WatchSpec) -> Option<DynamicMessage> {
    let mut dynamic = DynamicMessage::new(whole.clone());
    dynamic.transcode_from(spec).ok()?;
    match dynamic.get_field_by_name(kind.name())?.as_ref() {
        Value::Message(message) => Some(message.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{Cardinality, FieldDescriptor, Kind, MapKey};

    use super::*;

    /// Returns a value of the field that differs from its absence.
    fn some_value(field: &FieldDescriptor) -> Value {
        let value = match field.kind() {
            Kind::Bool => Value::Bool(true),
            Kind::String => Value::String("x".to_owned()),
            Kind::Bytes => Value::Bytes("x".into()),
            Kind::Enum(_) => Value::EnumNumber(1),
            Kind::Int32 | Kind::Sint32 => Value::I32(1),
            Kind::Int64 => Value::I64(1),
            Kind::Uint32 => Value::U32(1),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(1),
            Kind::Message(message) => Value::Message(DynamicMessage::new(message)),
            other => panic!("no value for a field of {other:?}"),
        };
        if field.is_map() {
            return Value::Map(
                [(
                    MapKey::String("k".to_owned()),
                    Value::String("x".to_owned()),
                )]
                .into(),
            );
        }
        match field.cardinality() {
            Cardinality::Repeated => Value::List(vec![value]),
            _ => value,
        }
    }

    #[test]
    fn every_field_of_every_kind_is_compared_and_named() {
        let whole = proto::descriptors()
            .get_message_by_name("evloopd.v1.WatchSpec")
            .unwrap();
        for spec in whole.fields() {
            let kind = spec.kind().as_message().unwrap().clone();
            let of = |message: DynamicMessage| {
                let mut dynamic = DynamicMessage::new(whole.clone());
                dynamic.set_field(&spec, Value::Message(message));
                dynamic.transcode_to::<WatchSpec>().unwrap()
            };
            let empty = of(DynamicMessage::new(kind.clone()));
            assert_eq!(difference(&empty, &empty), None);
            for field in kind.fields() {
                let mut message = DynamicMessage::new(kind.clone());
                message.set_field(&field, some_value(&field));
                let oneof = field
                    .containing_oneof()
                    .filter(|oneof| !oneof.is_synthetic());
                let name = oneof.map_or_else(|| field.name().to_owned(), |o| o.name().to_owned());
                let path = format!("spec.{}.{name}", spec.name());
                let path = Some(path).filter(|path| path != "spec.process.terminal");
                assert_eq!(difference(&empty, &of(message)), path);
            }
        }
    }
}
