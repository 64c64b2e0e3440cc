//! Compiles `proto/` without an installed `protoc`.
//!
//! It compiles them twice: once for all messages and clients (`crate::proto`), and once for the
//! server stubs. The streaming replies of the stubs are types that write the bytes of the journal
//! unchanged (`crate::rpc::wire`) and encode to the same messages.
//!
//! It also writes `kinds.rs`: the kinds of watch and of event (`crate::kinds`), which are the
//! fields of `WatchSpec.spec` and `Event.kind`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use protox::prost_reflect::DescriptorPool;
use protox::prost_reflect::prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

const STREAMED: [(&str, &str); 5] = [
    ("SubscribeResponse", "crate::rpc::wire::SubscribeResponse"),
    ("AttachResponse", "crate::rpc::wire::AttachResponse"),
    ("RunResponse", "crate::rpc::wire::RunResponse"),
    (
        "AttachTerminalResponse",
        "crate::rpc::wire::AttachTerminalResponse",
    ),
    ("PollResponse", "crate::rpc::wire::PollResponse"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let root = Path::new("proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("evloopd/v1"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo::rerun-if-changed=proto");

    let descriptors = protox::compile(&files, [root])?;
    std::fs::write(out.join("evloopd.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("kinds.rs"), kinds(&descriptors)?)?;

    // The name of a message is used to look up its descriptor, which converts it to JSON.
    let mut names = tonic_prost_build::Config::new();
    names.enable_type_names();
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".evloopd.v1")
        .btree_map(".evloopd.v1")
        .compile_fds_with_config(descriptors.clone(), names)?;

    let kept = protox::compile([root.join("evloopd/state/v1/state.proto")], [root])?;
    let state = out.join("state");
    std::fs::create_dir_all(&state)?;
    tonic_prost_build::configure()
        .out_dir(&state)
        .extern_path(".evloopd.v1", "crate::proto")
        .btree_map(".evloopd.state.v1")
        .compile_fds(kept)?;

    let server = out.join("server");
    std::fs::create_dir_all(&server)?;
    let mut config = tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::rpc::wire::Codec")
        .out_dir(&server);
    for file in &descriptors.file {
        if file.package() != "evloopd.v1" {
            continue;
        }
        for name in file.message_type.iter().map(DescriptorProto::name) {
            let ours = STREAMED.iter().find(|(streamed, _)| *streamed == name);
            let path = ours.map_or_else(|| format!("crate::proto::{name}"), |(_, p)| (*p).into());
            config = config.extern_path(format!(".evloopd.v1.{name}"), path);
        }
        for name in file.enum_type.iter().map(EnumDescriptorProto::name) {
            config = config.extern_path(
                format!(".evloopd.v1.{name}"),
                format!("crate::proto::{name}"),
            );
        }
    }
    config.compile_fds(descriptors)?;
    Ok(())
}

/// A field of a oneof in `proto/`.
struct Field {
    /// The name in the `.proto` file: `read_pipe`.
    name: String,
    /// The name of the variant that prost generates: `ReadPipe`.
    variant: String,
    /// The name of its message type: `ReadPipeSpec`.
    message: String,
}

fn fields(pool: &DescriptorPool, message: &str, oneof: &str) -> Result<Vec<Field>, Box<dyn Error>> {
    let message = pool
        .get_message_by_name(&format!("evloopd.v1.{message}"))
        .ok_or_else(|| format!("proto/ has no message {message}"))?;
    let oneof = message
        .oneofs()
        .find(|found| found.name() == oneof)
        .ok_or_else(|| format!("{} has no oneof {oneof}", message.name()))?;
    let fields = oneof.fields().map(|field| {
        let words = field.name().split('_');
        Field {
            name: field.name().to_owned(),
            variant: words
                .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
                .collect(),
            message: field
                .kind()
                .as_message()
                .map(|of| of.name().to_owned())
                .unwrap_or_default(),
        }
    });
    Ok(fields.collect())
}

/// Returns one arm of a match, or one line of a list, for each field.
fn each(fields: &[Field], line: impl Fn(&Field) -> String) -> String {
    fields.iter().map(line).collect()
}

/// Returns the source of those items of `src/kinds.rs` that follow from the fields of the two
/// oneofs.
fn kinds(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_set(descriptors.clone())?;
    let watches = fields(&pool, "WatchSpec", "spec")?;
    let events = fields(&pool, "Event", "kind")?;
    let mut source = String::new();
    write!(
        source,
        "words! {{
            /// A kind of watch: a field of `WatchSpec.spec`.
            WatchKind {{ {} }}
        }}
        impl WatchKind {{
            /// Returns the kind of a specification.
            #[must_use]
            pub const fn of(spec: &Spec) -> Self {{ match spec {{ {} }} }}
        }}
        /// Evaluates `$body` with `$message` bound to the message of a `watch_spec::Spec` of any
        /// kind.
        macro_rules! with_spec {{
            ($spec:expr, $message:ident => $body:expr) => {{ match $spec {{ {} }} }};
        }}
        pub(crate) use with_spec;
        ",
        each(&watches, |f| format!(
            "/// `{}`: see [`{m}`](crate::proto::{m}).\n{} = {:?},\n",
            f.name,
            f.variant,
            f.name,
            m = f.message
        )),
        each(&watches, |f| format!(
            "Spec::{v}(_) => Self::{v},",
            v = f.variant
        )),
        each(&watches, |f| format!(
            "$crate::proto::watch_spec::Spec::{}($message) => $body,",
            f.variant
        )),
    )?;
    write!(
        source,
        "/// The names of all kinds of event, in the order of their numbers.
        pub const EVENT_KINDS: [&str; {}] = [{}];
        /// Returns the kind of an event, with the number that filters use.
        #[must_use]
        pub const fn event_kind(kind: &Kind) -> EventKind {{ match kind {{ {} }} }}
        /// Returns the name of an event's kind, which is the name of its field in `Event.kind`.
        #[must_use]
        pub const fn event_kind_name(kind: &Kind) -> &'static str {{ match kind {{ {} }} }}
        /// Evaluates `$body` with `$message` bound to the message of an `event::Kind` of any kind.
        macro_rules! with_event {{
            ($kind:expr, $message:ident => $body:expr) => {{ match $kind {{ {} }} }};
        }}
        pub(crate) use with_event;
        ",
        events.len(),
        each(&events, |f| format!("{:?},", f.name)),
        each(&events, |f| format!(
            "Kind::{v}(_) => EventKind::{v},",
            v = f.variant
        )),
        each(&events, |f| format!(
            "Kind::{}(_) => {:?},",
            f.variant, f.name
        )),
        each(&events, |f| format!(
            "$crate::proto::event::Kind::{}($message) => $body,",
            f.variant
        )),
    )?;
    Ok(source)
}
