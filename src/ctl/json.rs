//! Messages as JSON: names as in the proto files, enums as short lower-case words,
//! bytes as `text` where they are UTF-8 and else as `base64`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::proto::event::Kind;
use crate::proto::{self, Event, Gap, exited, socket_address, unix_address};

/// An enum's value as a short word: `CLOSE_REASON_REMOVED` is `removed`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    let short = name.strip_prefix(prefix).unwrap_or(name);
    short.to_ascii_lowercase()
}

/// Puts bytes into an object, under the key that says how to read them.
pub(super) fn put_bytes(object: &mut Map<String, Value>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert("text".to_owned(), text.into()),
        Err(_) => object.insert("base64".to_owned(), STANDARD.encode(bytes).into()),
    };
}

/// `value` with bytes in it.
fn with_bytes(mut value: Value, bytes: &[u8]) -> Value {
    if let Value::Object(object) = &mut value {
        put_bytes(object, bytes);
    }
    value
}

/// `value` with one more key, if there is something to put there.
pub(super) fn with(mut value: Value, key: &str, more: Option<Value>) -> Value {
    if let (Value::Object(object), Some(more)) = (&mut value, more) {
        object.insert(key.to_owned(), more);
    }
    value
}

/// An event: its position, times and watch, its `kind`, and under that name what it says.
pub(super) fn event(event: &Event) -> Value {
    let (kind, body) = event.kind.as_ref().map_or(("unknown", json!({})), kind);
    let head = json!({
        "seq": event.seq,
        "monotonic_ns": event.monotonic_ns,
        "realtime_ns": event.realtime_ns,
        "watch_id": event.watch_id,
        "user_data": event.user_data,
        "kind": kind,
    });
    with(head, kind, Some(body))
}

/// A gap, told apart from events by its `kind`.
pub(super) fn gap(gap: &Gap) -> Value {
    json!({
        "kind": "gap",
        "gap": {
            "from_seq": gap.from_seq,
            "through_seq": gap.through_seq,
            "reason": word(gap.reason().as_str_name(), "GAP_REASON_"),
        },
    })
}

fn kind(kind: &Kind) -> (&'static str, Value) {
    match kind {
        Kind::Added(e) => ("added", added(e)),
        Kind::Closed(e) => ("closed", closed(e)),
        Kind::Removed(e) => ("removed", json!({"request_id": e.request_id})),
        Kind::Ready(e) => ("ready", ready(e)),
        Kind::TimerFired(e) => ("timer_fired", timer_fired(e)),
        Kind::Started(e) => ("started", json!({"pid": e.pid})),
        Kind::Data(e) => ("data", data(e)),
        Kind::StreamEnd(e) => ("stream_end", stream_end(e)),
        Kind::Exited(e) => ("exited", exited(e)),
        Kind::Connected(e) => ("connected", connected(e)),
        Kind::Accepted(e) => ("accepted", accepted(e)),
        Kind::AcceptPaused(e) => ("accept_paused", accept_paused(e)),
        Kind::Eof(e) => ("eof", json!({"offset": e.offset})),
        Kind::WritePaused(e) => ("write_paused", json!({"buffered_bytes": e.buffered_bytes})),
        Kind::WriteResumed(e) => ("write_resumed", json!({"buffered_bytes": e.buffered_bytes})),
        Kind::Signal(e) => ("signal", signal(e)),
        Kind::Posted(e) => ("posted", posted(e)),
        Kind::LoopStateChanged(e) => {
            let state = word(e.state().as_str_name(), "LOOP_STATE_");
            ("loop_state_changed", json!({"state": state}))
        }
        Kind::PolicyChanged(e) => ("policy_changed", policy_changed(e)),
    }
}

fn added(e: &proto::Added) -> Value {
    json!({
        "request_id": e.request_id,
        "name": e.name,
        "watch_kind": e.watch_kind,
        "parent_watch_id": e.parent_watch_id,
    })
}

/// Why and how a watch closed.
pub(super) fn closed(e: &proto::Closed) -> Value {
    let body = json!({
        "reason": word(e.reason().as_str_name(), "CLOSE_REASON_"),
        "unsent_bytes": e.unsent_bytes,
    });
    with(body, "error", e.error.as_ref().map(system_error))
}

fn ready(e: &proto::Ready) -> Value {
    json!({
        "readable": e.readable,
        "writable": e.writable,
        "hangup": e.hangup,
        "error": e.error,
        "half_closed": e.half_closed,
        "read_fired": e.read_fired,
        "write_fired": e.write_fired,
    })
}

fn timer_fired(e: &proto::TimerFired) -> Value {
    json!({
        "scheduled_ns": e.scheduled_ns,
        "late_ns": e.late_ns,
        "missed": e.missed,
        "tick": e.tick,
    })
}

fn data(e: &proto::Data) -> Value {
    let stream = word(e.stream().as_str_name(), "STREAM_");
    with_bytes(json!({"stream": stream, "offset": e.offset}), &e.data)
}

fn stream_end(e: &proto::StreamEnd) -> Value {
    let body = json!({
        "stream": word(e.stream().as_str_name(), "STREAM_"),
        "offset": e.offset,
        "reason": word(e.reason().as_str_name(), "STREAM_END_REASON_"),
    });
    with(body, "error", e.error.as_ref().map(system_error))
}

/// How a child ended.
pub(super) fn exited(e: &proto::Exited) -> Value {
    let status = match &e.status {
        Some(exited::Status::Code(code)) => json!({"code": code}),
        Some(exited::Status::Signal(signal)) => json!({"signal": signal}),
        Some(exited::Status::Unknown(why)) => json!({"unknown": why}),
        None => json!({"unknown": ""}),
    };
    let status = with(status, "core_dumped", Some(e.core_dumped.into()));
    with(status, "usage", e.usage.as_ref().map(usage))
}

fn usage(u: &proto::ResourceUsage) -> Value {
    let time = |t: &Option<prost_types::Duration>| t.unwrap_or_default().to_string();
    json!({
        "user_time": time(&u.user_time),
        "system_time": time(&u.system_time),
        "max_rss_kib": u.max_rss_kib,
        "minor_faults": u.minor_faults,
        "major_faults": u.major_faults,
        "block_inputs": u.block_inputs,
        "block_outputs": u.block_outputs,
        "voluntary_switches": u.voluntary_switches,
        "involuntary_switches": u.involuntary_switches,
    })
}

fn connected(e: &proto::Connected) -> Value {
    let body = with(json!({}), "local", e.local.as_ref().map(address));
    with(body, "peer", e.peer.as_ref().map(address))
}

fn accepted(e: &proto::Accepted) -> Value {
    with(
        json!({"watch_id": e.watch_id}),
        "peer",
        e.peer.as_ref().map(address),
    )
}

fn accept_paused(e: &proto::AcceptPaused) -> Value {
    let body = with(json!({}), "error", e.error.as_ref().map(system_error));
    with(
        body,
        "retry_after",
        e.retry_after.map(|d| d.to_string().into()),
    )
}

fn signal(e: &proto::Signal) -> Value {
    json!({
        "number": e.number,
        "sender_pid": e.sender_pid,
        "sender_uid": e.sender_uid,
        "value": e.value,
        "count": e.count,
    })
}

fn posted(e: &proto::Posted) -> Value {
    let body = json!({"request_id": e.request_id, "topic": e.topic});
    with_bytes(body, &e.payload)
}

fn policy_changed(e: &proto::PolicyChanged) -> Value {
    json!({
        "scope": word(e.scope().as_str_name(), "POLICY_SCOPE_"),
        "old_policy": e.old_policy,
        "new_policy": e.new_policy,
    })
}

/// A system error.
pub(super) fn system_error(e: &proto::SystemError) -> Value {
    json!({"errno": e.errno, "name": e.name, "step": e.step, "message": e.message})
}

/// A socket's address.
pub(super) fn address(a: &proto::SocketAddress) -> Value {
    match &a.address {
        Some(socket_address::Address::Inet(a)) => json!({"inet": {"ip": a.ip, "port": a.port}}),
        Some(socket_address::Address::Unix(a)) => json!({"unix": unix_address(a)}),
        None => Value::Null,
    }
}

/// A Unix socket's address.
pub(super) fn unix_address(a: &proto::UnixAddress) -> Value {
    match &a.name {
        Some(unix_address::Name::Path(path)) => json!({"path": path}),
        Some(unix_address::Name::AbstractName(name)) => {
            json!({"abstract_name": with_bytes(json!({}), name)})
        }
        None => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &'static [u8]) -> Event {
        let stream = proto::Stream::Stdout.into();
        let data = proto::Data {
            stream,
            offset: 5,
            data: bytes.into(),
        };
        let kind = Some(Kind::Data(data));
        Event {
            seq: 9,
            realtime_ns: u64::MAX,
            watch_id: 2,
            kind,
            ..Event::default()
        }
    }

    #[test]
    fn bytes_are_text_where_they_are_utf8_and_else_base64() {
        let line = event(&data("é\n".as_bytes())).to_string();
        let head = r#"{"seq":9,"monotonic_ns":0,"realtime_ns":18446744073709551615,"watch_id":2,"#;
        let tail =
            r#""user_data":0,"kind":"data","data":{"stream":"stdout","offset":5,"text":"é\n"}}"#;
        assert_eq!(line, format!("{head}{tail}"));
        let binary = event(&data(b"\xff\0"));
        assert_eq!(binary["data"]["base64"], "/wA=");
        assert!(binary["data"].get("text").is_none());
    }

    #[test]
    fn enums_are_words_and_what_is_absent_is_not_there() {
        let reason = proto::CloseReason::FdTaken.into();
        let without = closed(&proto::Closed {
            reason,
            ..proto::Closed::default()
        });
        assert_eq!(without, json!({"reason": "fd_taken", "unsent_bytes": 0}));
    }
}
