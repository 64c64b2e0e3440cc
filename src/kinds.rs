//! The kinds of watch and of event.
//!
//! A kind is a field of `WatchSpec.spec` or of `Event.kind` in `proto/`, and has the name and the
//! number of that field. The build script generates the items of this module from those fields, so
//! that a kind is defined in one place.

use crate::proto::EventKind;
use crate::proto::event::Kind;
use crate::proto::watch_spec::Spec;
use crate::words::words;

include!(concat!(env!("OUT_DIR"), "/kinds.rs"));

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::{Event, PolicyChanged, Posted};

    #[test]
    fn the_number_of_an_event_kind_is_the_tag_that_its_encoding_uses() {
        for kind in [
            Kind::Posted(Posted::default()),
            Kind::PolicyChanged(PolicyChanged::default()),
        ] {
            let number = event_kind(&kind) as u32;
            let event = Event {
                kind: Some(kind),
                ..Event::default()
            };
            let bytes = event.encode_to_vec();
            // All other fields are zero and so are not encoded: the key of the kind comes first.
            let (tag, _) = prost::encoding::decode_key(&mut bytes.as_slice()).unwrap();
            assert_eq!(tag, number);
        }
    }

    #[test]
    fn filters_know_every_kind_of_event_by_the_number_of_its_field() {
        let pool = crate::proto::descriptors();
        let event = pool.get_message_by_name("evloopd.v1.Event").unwrap();
        let oneof = event.oneofs().find(|oneof| oneof.name() == "kind").unwrap();
        for field in oneof.fields() {
            let kind = EventKind::try_from(i32::try_from(field.number()).unwrap()).unwrap();
            let name = kind.as_str_name().strip_prefix("EVENT_KIND_").unwrap();
            assert_eq!(name.to_ascii_lowercase(), field.name());
        }
    }
}
