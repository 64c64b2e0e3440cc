//! A section `[tls.NAME]`: reads its files, and reads them again when they change.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustls::pki_types::CertificateDer;

use super::material::Material;
use super::trust::Trust;
use super::{Unusable, pem};
use crate::config::TlsSection;

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// The permission of everybody else to read or write.
const OTHERS: u32 = 0o006;

/// What tells a changed file from an unchanged one: device, inode, size, times of the last change
/// of content and of inode. `None` if there is no such file.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// One section, with the content of its files.
#[derive(Debug)]
pub struct Section {
    name: String,
    config: TlsSection,
    current: Mutex<Arc<Material>>,
    seen: Mutex<Seen>,
    /// The sections whose certificates are shown by name. Weak, since sections may name each other.
    others: OnceLock<Vec<Weak<Self>>>,
}

#[derive(Debug)]
struct Seen {
    stamps: Vec<Stamp>,
    /// Why the changed files were not taken.
    refused: Option<Unusable>,
}

impl Section {
    /// Reads the files. May block.
    ///
    /// # Errors
    /// The key whose file cannot be used, and why.
    pub(super) fn load(name: &str, config: &TlsSection) -> Result<Self, Unusable> {
        // Taken before the files are read: a change meanwhile is noticed by the next look.
        let stamps = stamps(config);
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            current: Mutex::new(Arc::new(read(config)?)),
            seen: Mutex::new(Seen {
                stamps,
                refused: None,
            }),
            others: OnceLock::new(),
        })
    }

    pub(super) fn add_names_of(&self, others: &[Arc<Self>]) {
        let others = others.iter().map(Arc::downgrade).collect();
        // Set once, right after all sections are loaded.
        let _ = self.others.set(others);
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether it has a certificate and a key.
    #[must_use]
    pub const fn has_certificate(&self) -> bool {
        self.config.cert.is_some()
    }

    /// Returns when its certificate expires, in seconds since the Unix epoch.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.current().expires()
    }

    pub(super) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.lock())
    }

    /// Returns the certificates of the other sections that are shown by name.
    pub(super) fn others(&self) -> impl Iterator<Item = Arc<Material>> {
        let others = self.others.get().into_iter().flatten();
        let others = others.filter_map(Weak::upgrade);
        others.map(|section| section.current())
    }

    pub(super) const fn is_strict(&self) -> bool {
        self.config.strict_sni
    }

    /// Reads the files again if one of them has changed, and takes them if they can be used
    /// together. Key and certificate are usually replaced one after the other, so that they do not
    /// match in between: then the old ones stay until the next look.
    pub(super) fn refresh(&self) {
        let stamps = stamps(&self.config);
        let mut seen = self.seen.lock();
        if stamps == seen.stamps && seen.refused.is_none() {
            return;
        }
        seen.stamps = stamps;
        match read(&self.config) {
            Ok(material) => {
                seen.refused = None;
                let expires = material.expires();
                *self.current.lock() = Arc::new(material);
                tracing::info!(section = self.name, expires, "changed TLS files are in use");
            }
            Err(refused) => {
                if seen.refused.as_ref() != Some(&refused) {
                    let Unusable { part, why } = &refused;
                    tracing::warn!(
                        key = format!("tls.{}.{part}", self.name),
                        why,
                        "changed TLS files cannot be used; those before stay in use"
                    );
                }
                seen.refused = Some(refused);
            }
        }
    }
}

fn files(config: &TlsSection) -> [(&'static str, Option<&Path>); 4] {
    [
        ("cert", config.cert.as_deref()),
        ("key", config.key.as_deref()),
        ("ca", config.ca.as_deref()),
        ("client_ca", config.client_ca.as_deref()),
    ]
}

fn stamps(config: &TlsSection) -> Vec<Stamp> {
    let stamp = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((
            found.dev(),
            found.ino(),
            found.size(),
            (found.mtime(), found.mtime_nsec()),
            (found.ctime(), found.ctime_nsec()),
        ))
    };
    let paths = files(config).into_iter().filter_map(|(_, path)| path);
    paths.map(stamp).collect()
}

fn read(config: &TlsSection) -> Result<Material, Unusable> {
    let [cert, key, ca, client_ca] =
        files(config).map(|(part, path)| path.map(|path| (part, path)));
    let pair = match (cert, key) {
        (Some((cert, chain)), Some((key, path))) => {
            let secret = content(key, path, true)?;
            let secret = pem::key(key, &secret).map_err(|error| at(path, &error))?;
            Some((certificates(cert, chain)?, secret))
        }
        _ => None,
    };
    let trust = |(part, path)| Trust::of(part, certificates(part, path)?);
    let (servers, clients) = (
        ca.map(trust).transpose()?,
        client_ca.map(trust).transpose()?,
    );
    Material::new(pair, servers, clients)
}

fn certificates(part: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = content(part, path, false)?;
    pem::certificates(part, &pem).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &Unusable) -> Unusable {
    let why = format!("`{}` {}", path.display(), error.why);
    Unusable::new(error.part, why)
}

/// Reads a file, which must not be readable or writable by everybody if it is `secret`.
fn content(part: &'static str, path: &Path, secret: bool) -> Result<Vec<u8>, Unusable> {
    let failed = |why: String| at(path, &Unusable::new(part, why));
    let unreadable = |error: io::Error| failed(format!("cannot be read: {error}"));
    // Opening a FIFO would wait for its writer otherwise.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = file.map_err(|errno| unreadable(errno.into()))?;
    let file = File::from(file);
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(failed("is no regular file".to_owned()));
    }
    if secret && found.mode() & OTHERS != 0 {
        let mode = found.mode() & 0o7777;
        return Err(failed(format!(
            "has mode {mode:04o}, so that everybody can use the key: `chmod o-rw` it"
        )));
    }
    let mut bytes = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(failed("is larger than 1 MiB".to_owned()));
    }
    Ok(bytes)
}
