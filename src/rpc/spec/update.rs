//! Checks of requests to change a watch. The result is the change, and what is shown of the watch
//! afterwards.

use std::time::Duration;

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, Value};

use super::{Checks, FINISHED_TTL_MAX, SPEC_MAX, Specification as _};
use crate::access::Peer;
use crate::error::{Error, Result};
use crate::event::Labels;
use crate::event_loop::Handle;
use crate::kinds::{WatchKind, with_spec};
use crate::proto::{self, WatchSpec};
use crate::rpc::{Api, convert};
use crate::watch::{Change, Services};

/// Most paths of an update mask.
const PATHS_MAX: usize = 16;
const MASK: &str = "update_mask";
const OF_SPEC: &str = "spec.";

/// A change of a watch whose preparation may block.
pub(in crate::rpc) type Prepare = Box<dyn FnOnce(&Services) -> Result<Change> + Send>;

/// The checked parts of a request that do not depend on the watch.
pub(in crate::rpc) struct Asked {
    /// The paths of the mask below `spec`, each a kind and a field.
    fields: Vec<(String, String)>,
    spec: Option<WatchSpec>,
    pub(in crate::rpc) labels: Option<Labels>,
    pub(in crate::rpc) finished_ttl: Option<Option<Duration>>,
    pub(in crate::rpc) request_id: String,
}

/// What the specification of a watch becomes.
pub(in crate::rpc) struct Planned {
    /// The specification before and after.
    pub(in crate::rpc) specs: Box<(WatchSpec, WatchSpec)>,
    /// The fields that change, as paths of the mask.
    pub(in crate::rpc) fields: Vec<String>,
    pub(in crate::rpc) prepare: Prepare,
}

/// Checks a request.
pub(in crate::rpc) fn asked(request: proto::UpdateWatchRequest) -> Result<Asked> {
    let mask = request.update_mask.unwrap_or_default().paths;
    if mask.is_empty() || mask.len() > PATHS_MAX {
        return Err(Error::invalid(MASK, "must have 1 to 16 paths"));
    }
    let mut asked = Asked {
        fields: Vec::new(),
        spec: request.spec,
        labels: None,
        finished_ttl: None,
        request_id: convert::short_text("request_id", request.request_id)?,
    };
    let has = |path: &str| mask.iter().any(|of| of == path);
    if has("labels") {
        asked.labels = Some(convert::labels("labels", request.labels)?);
    } else if !request.labels.is_empty() {
        return Err(not_in_mask("labels"));
    }
    if has("finished_ttl") {
        let field = "finished_ttl";
        let ttl = convert::optional_duration(field, request.finished_ttl, FINISHED_TTL_MAX)?;
        asked.finished_ttl = Some(ttl);
    } else if request.finished_ttl.is_some() {
        return Err(not_in_mask("finished_ttl"));
    }
    for path in mask {
        let of_spec = path
            .strip_prefix(OF_SPEC)
            .and_then(|path| path.split_once('.'));
        match of_spec {
            Some((kind, field)) => asked.fields.push((kind.to_owned(), field.to_owned())),
            None if path == "labels" || path == "finished_ttl" => {}
            None => {
                return Err(Error::invalid(
                    MASK,
                    format!(
                        "`{path}`: must be `labels`, `finished_ttl`, or a field of the \
                         specification such as `spec.timer.every`"
                    ),
                ));
            }
        }
    }
    if asked.fields.is_empty() && asked.spec.is_some() {
        return Err(not_in_mask("spec"));
    }
    Ok(asked)
}

fn not_in_mask(field: &'static str) -> Error {
    Error::invalid(field, "must be absent if update_mask does not name it")
}

/// Plans the change of a watch that has this name and specification; `None` if nothing of the
/// specification changes.
pub(in crate::rpc) fn plan(
    api: &Api,
    peer: &Peer,
    on: &Handle,
    asked: &Asked,
    watch: &proto::Watch,
) -> Result<Option<Planned>> {
    if asked.fields.is_empty() {
        return Ok(None);
    }
    let before = watch.spec.clone().ok_or_else(|| {
        let why = "an accepted connection has no specification: SetWaterMarks changes its marks";
        Error::wrong_state(why)
    })?;
    let kind = before.spec.as_ref().map(WatchKind::of);
    let kind = kind.ok_or(Error::Internal("a watch has no kind"))?;
    let mut given = asked.spec.clone().unwrap_or_default();
    if let Some(spec) = &mut given.spec {
        with_spec!(spec, message => message.normalize());
    }
    if let Some(given) = &given.spec
        && WatchKind::of(given) != kind
    {
        return Err(Error::invalid(
            "spec",
            format!("must be a {kind}, as the watch is"),
        ));
    }
    let broken = || Error::Internal("a specification lost its kind");
    let old = before.spec.clone().ok_or_else(broken)?;
    let changeable = with_spec!(&old, message => message.changeable());
    let merge = Merge {
        kind,
        changeable,
        mask: &asked.fields,
    };
    let (after, fields) = merge.merged(&before, &given)?;
    if fields.is_empty() {
        return Ok(None);
    }
    if after.encoded_len() > SPEC_MAX {
        return Err(Error::invalid("spec", "must be at most 256 KiB"));
    }
    let checks = Checks {
        api,
        peer,
        on,
        name: &watch.name,
    };
    let new = after.spec.clone().ok_or_else(broken)?;
    let prepare = with_spec!(new, message => message.change(old, &checks))?;
    Ok(Some(Planned {
        specs: Box::new((before, after)),
        fields,
        prepare,
    }))
}

/// Puts the fields of a mask into a specification.
struct Merge<'a> {
    kind: WatchKind,
    changeable: &'static [&'static str],
    /// Kinds and fields.
    mask: &'a [(String, String)],
}

impl Merge<'_> {
    /// Returns the specification with the fields of the mask replaced, and the paths of those that
    /// have another value now.
    fn merged(&self, before: &WatchSpec, given: &WatchSpec) -> Result<(WatchSpec, Vec<String>)> {
        let lost = || Error::Internal("a specification cannot be described");
        let dynamic = |spec: &WatchSpec| -> Result<DynamicMessage> {
            let whole = proto::descriptors().get_message_by_name("evloopd.v1.WatchSpec");
            let mut dynamic = DynamicMessage::new(whole.ok_or_else(lost)?);
            dynamic.transcode_from(spec).map_err(|_| lost())?;
            Ok(dynamic)
        };
        let (mut whole, theirs) = (dynamic(before)?, dynamic(given)?);
        let theirs = self.message(&theirs);
        let mut ours = self.message(&whole).ok_or_else(lost)?;
        let earlier = ours.clone();
        let descriptor = ours.descriptor();
        let mut named = Vec::new();
        for (of, name) in self.mask {
            let path = format!("spec.{of}.{name}");
            self.check(of, name, &path)?;
            let field = descriptor.get_field_by_name(name).ok_or_else(lost)?;
            match theirs.as_ref().filter(|theirs| theirs.has_field(&field)) {
                Some(theirs) => ours.set_field(&field, theirs.get_field(&field).into_owned()),
                // Another member of a oneof may have been set before, by another path of the mask.
                None => ours.clear_field(&field),
            }
            named.push((path, field));
        }
        for (field, _) in theirs.iter().flat_map(DynamicMessage::fields) {
            if !named.iter().any(|(_, named)| *named == field) {
                let path = format!("spec.{}.{}", self.kind, field.name());
                let allowed = "must be absent if update_mask does not name it";
                return Err(Error::invalid(path, allowed));
            }
        }
        let differs = |field: &FieldDescriptor| {
            earlier.has_field(field) != ours.has_field(field)
                || earlier.get_field(field) != ours.get_field(field)
        };
        named.retain(|(_, field)| differs(field));
        let mut fields: Vec<String> = named.into_iter().map(|(path, _)| path).collect();
        fields.sort_unstable();
        fields.dedup();
        whole.set_field_by_name(self.kind.name(), Value::Message(ours));
        Ok((whole.transcode_to().map_err(|_| lost())?, fields))
    }

    fn check(&self, of: &str, name: &str, path: &str) -> Result<()> {
        let kind = self.kind;
        if of != kind.name() {
            let allowed = format!("`{path}`: must be a field of spec.{kind}, as the watch is");
            return Err(Error::invalid(MASK, allowed));
        }
        if self.changeable.contains(&name) {
            return Ok(());
        }
        let can = match self.changeable {
            [] => "nothing of its specification can be changed".to_owned(),
            fields => format!("what can be changed of a {kind} is {}", fields.join(", ")),
        };
        Err(Error::invalid(MASK, format!("`{path}`: {can}")))
    }

    fn message(&self, whole: &DynamicMessage) -> Option<DynamicMessage> {
        let field = whole.descriptor().get_field_by_name(self.kind.name())?;
        match whole
            .has_field(&field)
            .then(|| whole.get_field(&field))?
            .as_ref()
        {
            Value::Message(message) => Some(message.clone()),
            _ => None,
        }
    }
}
