//! Makes messages from random bytes, guided by the description of the protocol.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

const DEPTH_MAX: usize = 7;
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    3,
    16,
    255,
    1_000,
    65_536,
    999_999_999,
    1 << 31,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];
/// Ports that no program listens on: nobody else is to be disturbed.
const PORTS: [u64; 5] = [0, 1, 2, 65_535, 65_536];
const TEXTS: [&str; 28] = [
    "",
    "a",
    "b",
    "default",
    "proactor",
    "windows-selector-compat",
    "epoll",
    "io_uring",
    "auto",
    "127.0.0.1",
    "::1",
    "[::1]",
    "::ffff:127.0.0.1",
    "fe80::1%lo",
    "239.1.2.3",
    "256.1.1.1",
    "localhost",
    "lo",
    "host.test",
    "/dev/null",
    "/nowhere/at/all",
    "true",
    "SIGUSR1",
    "SIGRTMIN+3",
    "a@1",
    "\0\n\u{1b}[2J\u{202e}",
    "../..",
    "é.example",
];

/// Random bytes, and zeros after their end.
pub(crate) struct Random<'a>(pub(crate) &'a [u8]);

impl Random<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % end.max(1)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.0.is_empty()
    }
}

/// Makes a message of that kind. `files` is a directory for files that it names.
pub(crate) fn message(
    of: &MessageDescriptor,
    random: &mut Random<'_>,
    files: &str,
    depth: usize,
) -> DynamicMessage {
    let mut made = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let wanted = random.byte() % 8;
        if depth >= DEPTH_MAX || random.is_exhausted() || wanted > 4 {
            continue;
        }
        let value = if field.is_map() {
            let key = MapKey::String(text(random, files));
            Value::Map([(key, Value::String(text(random, files)))].into())
        } else if field.is_list() {
            let count = usize::from(wanted);
            Value::List(
                (0..count)
                    .map(|_| single(&field, random, files, depth))
                    .collect(),
            )
        } else {
            single(&field, random, files, depth)
        };
        made.set_field(&field, value);
    }
    made
}

fn text(random: &mut Random<'_>, files: &str) -> String {
    match random.below(TEXTS.len() + 3) {
        0 => "x".repeat(random.below(3_000)),
        1 => format!("{files}/{}", random.below(4)),
        2 => random.byte().to_string(),
        n => TEXTS[n - 3].to_owned(),
    }
}

fn single(field: &FieldDescriptor, random: &mut Random<'_>, files: &str, depth: usize) -> Value {
    let number = |random: &mut Random<'_>| {
        if field.name() == "port" {
            return PORTS[random.below(PORTS.len())];
        }
        match random.byte() % 3 {
            0 => u64::from(random.byte()),
            _ => NUMBERS[random.below(NUMBERS.len())],
        }
    };
    // The first bits of a number are as good as all of it.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    match field.kind() {
        Kind::Bool => Value::Bool(random.byte() % 2 == 1),
        Kind::String => Value::String(text(random, files)),
        Kind::Bytes => Value::Bytes(match random.byte() % 5 {
            0 => vec![random.byte(); 16].into(),
            1 => include_bytes!("corpus/host.pem").to_vec().into(),
            2 => include_bytes!("corpus/host.key").to_vec().into(),
            3 => vec![random.byte(); random.below(40_000)].into(),
            _ => bytes::Bytes::new(),
        }),
        Kind::Double => Value::F64(f64::from_bits(number(random))),
        Kind::Float => Value::F32(f32::from_bits(number(random) as u32)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(random) as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(random) as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(random) as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(random)),
        Kind::Enum(_) => Value::EnumNumber(i32::from(random.byte() % 12) - 1),
        Kind::Message(of) => Value::Message(message(&of, random, files, depth + 1)),
    }
}
