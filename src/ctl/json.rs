//! Messages as JSON, in one shape that follows from the proto files, field by field:
//!
//! - A field has the name that it has there. Fields without a value of their own (messages, `optional`,
//!   members of a oneof) are there if they are set, all others always.
//! - A oneof has its own name too, with the name of the member that is set.
//! - Enums are words: `CLOSE_REASON_REMOVED` is `"removed"`.
//! - Bytes are an object: `{"text": …}` where they are UTF-8, else `{"base64": …}`.
//! - Timestamps are RFC 3339, durations seconds with their unit (`"1.5s"`), cursors `"EPOCH:SEQ"`.
//! - Numbers are numbers, also those of 64 bits.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    ReflectMessage as _, Value as Field,
};
use serde_json::{Map, Value, json};

use super::parse::cursor_text;
use crate::proto::{self, Gap};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default());

/// A message of the proto files.
pub(super) fn of<M: Message + Name>(message: &M) -> Value {
    // Both cannot fail: it is a message of ours, and its bytes come from it.
    let dynamic = POOL
        .get_message_by_name(&M::full_name())
        .map(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()));
    match dynamic {
        Some(Ok(dynamic)) => object(&dynamic),
        Some(Err(_)) | None => Value::Null,
    }
}

/// A gap, told apart from events by its `kind`.
pub(super) fn gap(gap: &Gap) -> Value {
    json!({"kind": "gap", "gap": of(gap)})
}

/// The fields of `more` after those of `value`, both of them objects.
pub(super) fn joined(mut value: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut value, more) {
        object.extend(more);
    }
    value
}

/// An enum's value as a short word: `CLOSE_REASON_REMOVED` is `removed`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    let short = name.strip_prefix(prefix).unwrap_or(name);
    short.to_ascii_lowercase()
}

fn object(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    let text = match descriptor.full_name() {
        "google.protobuf.Timestamp" => text::<prost_types::Timestamp>(message, ToString::to_string),
        "google.protobuf.Duration" => text::<prost_types::Duration>(message, ToString::to_string),
        "evloopd.v1.Cursor" => text::<proto::Cursor>(message, cursor_text),
        _ => None,
    };
    if let Some(text) = text {
        return text.into();
    }
    let mut object = Map::new();
    for field in descriptor.fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        let oneof = field.containing_oneof();
        if let Some(oneof) = oneof.filter(|oneof| !oneof.is_synthetic()) {
            object.insert(oneof.name().to_owned(), field.name().into());
        }
        let value = of_field(&field, &message.get_field(&field));
        object.insert(field.name().to_owned(), value);
    }
    object.into()
}

fn text<M: Message + Default>(
    message: &DynamicMessage,
    text: impl Fn(&M) -> String,
) -> Option<String> {
    let message: M = message.transcode_to().ok()?;
    Some(text(&message))
}

fn of_field(field: &FieldDescriptor, value: &Field) -> Value {
    let kind = field.kind();
    match (value, &kind) {
        (Field::List(items), _) => items.iter().map(|item| single(&kind, item)).collect(),
        (Field::Map(entries), Kind::Message(entry)) => {
            let kind = entry.map_entry_value_field().kind();
            let mut entries: Vec<_> = entries
                .iter()
                .map(|(key, value)| (key_text(key), single(&kind, value)))
                .collect();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(entries.into_iter().collect())
        }
        (value, _) => single(&kind, value),
    }
}

fn single(kind: &Kind, value: &Field) -> Value {
    match value {
        Field::Bool(value) => (*value).into(),
        Field::I32(value) => (*value).into(),
        Field::I64(value) => (*value).into(),
        Field::U32(value) => (*value).into(),
        Field::U64(value) => (*value).into(),
        Field::F32(value) => (*value).into(),
        Field::F64(value) => (*value).into(),
        Field::String(text) => text.as_str().into(),
        Field::Bytes(bytes) => of_bytes(bytes),
        Field::EnumNumber(number) => match kind {
            Kind::Enum(descriptor) => of_enum(descriptor, *number),
            _ => (*number).into(),
        },
        Field::Message(message) => object(message),
        Field::List(_) | Field::Map(_) => Value::Null,
    }
}

fn of_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({"text": text}),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// A value that this program does not know stays a number.
fn of_enum(descriptor: &EnumDescriptor, number: i32) -> Value {
    let Some(value) = descriptor.get_value(number) else {
        return number.into();
    };
    let mut prefix = String::new();
    for letter in descriptor.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    word(value.name(), &prefix).into()
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::MessageDescriptor;

    use super::*;
    use crate::proto::Event;
    use crate::proto::event::Kind;

    #[test]
    fn a_message_has_the_names_of_the_proto_files() {
        let data = proto::Data {
            stream: proto::Stream::Stdout.into(),
            offset: 5,
            data: "é\n".into(),
        };
        let event = Event {
            seq: 9,
            realtime_ns: u64::MAX,
            watch_id: 2,
            kind: Some(Kind::Data(data)),
            ..Event::default()
        };
        let line = of(&event).to_string();
        let head = r#"{"seq":9,"monotonic_ns":0,"realtime_ns":18446744073709551615,"watch_id":2,"#;
        let tail = r#""user_data":0,"kind":"data","data":{"stream":"stdout","offset":5,"data":{"text":"é\n"}}}"#;
        assert_eq!(line, format!("{head}{tail}"));
    }

    #[test]
    fn what_is_absent_is_not_there_and_what_has_no_presence_always_is() {
        let exited = proto::Exited {
            status: Some(proto::exited::Status::Code(0)),
            ..proto::Exited::default()
        };
        assert_eq!(
            of(&exited),
            json!({"status": "code", "code": 0, "core_dumped": false, "timed_out": false})
        );
        let watch = proto::Watch {
            added: Some(proto::Cursor {
                epoch: "ab".to_owned(),
                seq: 7,
            }),
            created: Some(prost_types::Timestamp::default()),
            ..proto::Watch::default()
        };
        let value = of(&watch);
        assert_eq!(
            (&value["added"], &value["created"], &value["labels"]),
            (&"ab:7".into(), &"1970-01-01T00:00:00Z".into(), &json!({}))
        );
        assert!(value.get("closed").is_none() && value.get("status").is_none());
        let variable = proto::EnvVar {
            name: "A".into(),
            value: b"\xff\0"[..].into(),
        };
        assert_eq!(of(&variable)["value"], json!({"base64": "/wA="}));
    }

    /// Every field set, of messages too as deep as that many.
    fn full(descriptor: &MessageDescriptor, member: usize, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let single = |kind: &prost_reflect::Kind| match kind {
            prost_reflect::Kind::Message(of) if depth > 0 => {
                Field::Message(full(of, member, depth - 1))
            }
            kind => Field::default_value(kind),
        };
        for field in descriptor.fields() {
            let oneof = field.containing_oneof().filter(|o| !o.is_synthetic());
            if oneof.is_some_and(|o| {
                let members: Vec<_> = o.fields().collect();
                members[member % members.len()] != field
            }) {
                continue;
            }
            let value = match field.kind() {
                prost_reflect::Kind::Message(entry) if field.is_map() => {
                    let value = single(&entry.map_entry_value_field().kind());
                    Field::Map([(MapKey::String("key".to_owned()), value)].into())
                }
                kind if field.is_list() => Field::List(vec![single(&kind)]),
                kind => single(&kind),
            };
            message.set_field(&field, value);
        }
        message
    }

    fn names(value: &Value) -> Vec<&str> {
        let object = value.as_object().unwrap();
        object.keys().map(String::as_str).collect()
    }

    #[test]
    fn every_field_of_every_message_is_there_by_its_name() {
        let ours = POOL
            .all_messages()
            .filter(|message| message.package_name() == "evloopd.v1" && !message.is_map_entry());
        let mut count = 0;
        for descriptor in ours.filter(|message| message.name() != "Cursor") {
            let mut seen = std::collections::BTreeSet::new();
            // More than any oneof has members.
            for member in 0..32 {
                let value = object(&full(&descriptor, member, 2));
                seen.extend(names(&value).into_iter().map(str::to_owned));
            }
            let fields = descriptor.fields().map(|f| f.name().to_owned());
            let oneofs = descriptor.oneofs().filter(|o| !o.is_synthetic());
            let expected = fields.chain(oneofs.map(|o| o.name().to_owned())).collect();
            assert_eq!(seen, expected, "{}", descriptor.full_name());
            count += 1;
        }
        assert!(count > 100, "{count}");
    }

    #[test]
    fn every_enum_is_a_word_without_its_prefix() {
        for descriptor in POOL
            .all_enums()
            .filter(|e| e.package_name() == "evloopd.v1")
        {
            for value in descriptor.values() {
                let word = of_enum(&descriptor, value.number());
                let word = word.as_str().unwrap();
                let whole = value.name().to_ascii_lowercase();
                assert!(
                    whole.len() > word.len() && whole.ends_with(&format!("_{word}")),
                    "{whole}"
                );
            }
            assert_eq!(of_enum(&descriptor, 9999), json!(9999));
        }
    }
}
