//! Converts messages to JSON. The form follows from the proto files, field by field:
//!
//! - A field keeps its name. Messages, `optional` fields and members of a oneof are left out if they are not set; all
//!   other fields are always present.
//! - A oneof is a field too; its value is the name of the member that is set.
//! - Enums are words: `CLOSE_REASON_REMOVED` is `"removed"`.
//! - Bytes are an object: `{"text": …}` if they are UTF-8, else `{"base64": …}`.
//! - Timestamps are text as in RFC 3339, durations are seconds with their unit (`"1.5s"`), cursors are `"EPOCH:SEQ"`.
//! - Integers are JSON numbers, those of 64 bits too.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, Kind, MapKey, ReflectMessage as _, Value as Field,
};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Value, json};

use super::parse::cursor_text;
use crate::proto::{self, Gap};
use crate::text;

/// Converts a message to a JSON value.
pub(super) fn of<M: Message + Name>(message: &M) -> Value {
    let dynamic = dynamic(message);
    let value = dynamic.map(|dynamic| serde_json::to_value(Shape(&dynamic)));
    value.and_then(Result::ok).unwrap_or_default()
}

/// Converts a message to one line of JSON without a newline; invisible characters are escaped.
pub(super) fn line<M: Message + Name>(message: &M) -> String {
    let dynamic = dynamic(message);
    let line = dynamic.map(|dynamic| serde_json::to_string(&Shape(&dynamic)));
    let line = line.and_then(Result::ok).unwrap_or_default();
    match text::json(&line) {
        Cow::Borrowed(_) => line,
        Cow::Owned(escaped) => escaped,
    }
}

/// Returns the message with its descriptor. `None` cannot happen: the descriptor is built in, and the bytes were encoded
/// from the same message.
fn dynamic<M: Message + Name>(message: &M) -> Option<DynamicMessage> {
    let descriptor = proto::descriptors().get_message_by_name(&M::full_name())?;
    DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok()
}

/// Converts a gap to JSON. Its `kind` is `gap`, so that scripts can tell it from an event.
pub(super) fn gap(gap: &Gap) -> Value {
    json!({"kind": "gap", "gap": of(gap)})
}

/// Returns the object `value` with the fields of the object `more` after its own.
pub(super) fn joined(mut value: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut value, more) {
        object.extend(more);
    }
    value
}

/// Returns an enum's value as a short word: `CLOSE_REASON_REMOVED` with the prefix `CLOSE_REASON_` is `removed`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    let short = name.strip_prefix(prefix).unwrap_or(name);
    short.to_ascii_lowercase()
}

/// Serialises a message in the form that the module describes.
struct Shape<'a>(&'a DynamicMessage);

impl Serialize for Shape<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let descriptor = message.descriptor();
        if let Some(text) = as_text(message, descriptor.full_name()) {
            return serializer.serialize_str(&text);
        }
        let mut object = serializer.serialize_map(None)?;
        for field in descriptor.fields() {
            if field.supports_presence() && !message.has_field(&field) {
                continue;
            }
            let oneof = field.containing_oneof();
            if let Some(oneof) = oneof.filter(|oneof| !oneof.is_synthetic()) {
                object.serialize_entry(oneof.name(), field.name())?;
            }
            let (kind, value) = (field.kind(), message.get_field(&field));
            object.serialize_entry(field.name(), &Of(&kind, &value))?;
        }
        object.end()
    }
}

/// Returns the text of a timestamp, a duration or a cursor; `None` for any other message.
fn as_text(message: &DynamicMessage, name: &str) -> Option<String> {
    match name {
        "google.protobuf.Timestamp" => {
            let time: prost_types::Timestamp = message.transcode_to().ok()?;
            Some(time.to_string())
        }
        "google.protobuf.Duration" => {
            let time: prost_types::Duration = message.transcode_to().ok()?;
            Some(time.to_string())
        }
        "evloopd.v1.Cursor" => Some(cursor_text(&message.transcode_to().ok()?)),
        _ => None,
    }
}

/// A field's value, with the type that its descriptor gives.
struct Of<'a>(&'a Kind, &'a Field);

impl Serialize for Of<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(kind, value) = *self;
        match value {
            Field::Bool(value) => serializer.serialize_bool(*value),
            Field::I32(value) => serializer.serialize_i32(*value),
            Field::I64(value) => serializer.serialize_i64(*value),
            Field::U32(value) => serializer.serialize_u32(*value),
            Field::U64(value) => serializer.serialize_u64(*value),
            Field::F32(value) => serializer.serialize_f32(*value),
            Field::F64(value) => serializer.serialize_f64(*value),
            Field::String(text) => serializer.serialize_str(text),
            Field::Bytes(bytes) => of_bytes(bytes, serializer),
            Field::EnumNumber(number) => match kind {
                Kind::Enum(descriptor) => of_enum(descriptor, *number).serialize(serializer),
                _ => serializer.serialize_i32(*number),
            },
            Field::Message(message) => Shape(message).serialize(serializer),
            Field::List(items) => serializer.collect_seq(items.iter().map(|item| Of(kind, item))),
            Field::Map(entries) => {
                let kind = match kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    kind => kind.clone(),
                };
                let entries = entries.iter().map(|(key, value)| (key_text(key), value));
                let entries: BTreeMap<_, _> = entries.collect();
                serializer.collect_map(entries.iter().map(|(key, value)| (key, Of(&kind, value))))
            }
        }
    }
}

fn of_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut object = serializer.serialize_map(Some(1))?;
    match std::str::from_utf8(bytes) {
        Ok(text) => object.serialize_entry("text", text)?,
        Err(_) => object.serialize_entry("base64", &STANDARD.encode(bytes))?,
    }
    object.end()
}

/// Returns an enum's value as a word, or as its number if this program does not know it.
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
        let value = of(&event).to_string();
        let head = r#"{"seq":9,"monotonic_ns":0,"realtime_ns":18446744073709551615,"watch_id":2,"#;
        let tail = r#""user_data":0,"kind":"data","data":{"stream":"stdout","offset":5,"data":{"text":"é\n"}}}"#;
        assert_eq!(value, format!("{head}{tail}"));
        assert_eq!(line(&event), value);
        let hidden = proto::Added {
            name: "\u{202e}".to_owned(),
            ..proto::Added::default()
        };
        assert!(line(&hidden).contains(r"\u202e"));
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

    /// Returns a message with every field set, and messages in it too, `depth` levels deep. Of a oneof, the member with the
    /// number `member` is set.
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
        let ours = proto::descriptors()
            .all_messages()
            .filter(|message| message.package_name() == "evloopd.v1" && !message.is_map_entry());
        let mut count = 0;
        for descriptor in ours.filter(|message| message.name() != "Cursor") {
            let mut seen = std::collections::BTreeSet::new();
            // No oneof has 64 members or more.
            for member in 0..64 {
                let value = serde_json::to_value(Shape(&full(&descriptor, member, 2))).unwrap();
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
        for descriptor in proto::descriptors()
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
