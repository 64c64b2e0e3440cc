//! Child processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Checks, HOUR, Plan};
use crate::config::{ChildWatcher, WatchKind};
use crate::error::{Error, Result, SystemError};
use crate::proto::{self, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{AtEnd, Order, ProcessOrder, Program, Stdio};

/// Most bytes of a program's arguments and environment together; the kernel takes about 2 MiB.
const ARGUMENTS_MAX: usize = 2 << 20;

impl Checks<'_> {
    pub(super) fn process(&self, mut process: proto::ProcessSpec) -> Result<Plan> {
        use proto::process_spec::Command;

        let no_nul = |field: &'static str, text: &str| {
            if text.contains('\0') {
                return Err(Error::invalid(field, "must not contain NUL"));
            }
            Ok(())
        };
        let program = match process.command.clone() {
            Some(Command::Exec(exec)) => {
                let field = "spec.process.exec.argv";
                if exec.argv.first().is_none_or(String::is_empty) {
                    return Err(Error::invalid(field, "needs a program"));
                }
                exec.argv.iter().try_for_each(|arg| no_nul(field, arg))?;
                Program::Exec(exec.argv)
            }
            Some(Command::Shell(line)) => {
                no_nul("spec.process.shell", &line)?;
                Program::Shell(line)
            }
            None => return Err(Error::invalid("spec.process", "needs exec or shell")),
        };
        let inherited = process.inherited_env.take();
        let mut env: BTreeMap<String, String> = match inherited {
            Some(inherited) => inherited.variables,
            None => own_environment(),
        };
        env.extend(process.env.clone());
        for (name, value) in &env {
            no_nul("spec.process.env", value)?;
            no_nul("spec.process.env", name)?;
            if name.is_empty() || name.contains('=') {
                let allowed = "names must not be empty nor contain `=`";
                return Err(Error::invalid("spec.process.env", allowed));
            }
        }
        let args: usize = match &program {
            Program::Exec(argv) => argv.iter().map(String::len).sum(),
            Program::Shell(line) => line.len(),
        };
        let vars: usize = env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if args + vars > ARGUMENTS_MAX {
            let error = SystemError::new(rustix::io::Errno::TOOBIG, "exec", "");
            return Err(error.into());
        }
        if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
            return Err(Error::invalid("spec.process.cwd", "must be absolute"));
        }
        no_nul("spec.process.cwd", &process.cwd)?;
        let cwd = if process.cwd.is_empty() {
            "/"
        } else {
            process.cwd.as_str()
        };
        let order = ProcessOrder {
            program,
            env,
            cwd: PathBuf::from(cwd),
            stdio: [
                stdio("spec.process.stdin", process.stdin, Stdio::Null)?,
                stdio("spec.process.stdout", process.stdout, Stdio::Pipe)?,
                stdio("spec.process.stderr", process.stderr, Stdio::Pipe)?,
            ],
            pipe_grace: convert::optional_duration(
                "spec.process.pipe_grace",
                process.pipe_grace,
                HOUR,
            )?,
            kill_grace: convert::optional_duration(
                "spec.process.kill_grace",
                process.kill_grace,
                HOUR,
            )?,
            at_end: match proto::AtEnd::try_from(process.at_end) {
                Ok(proto::AtEnd::Unspecified | proto::AtEnd::KillTree) => AtEnd::KillTree,
                Ok(proto::AtEnd::Keep) => AtEnd::Keep,
                Err(_) => {
                    return Err(Error::invalid(
                        "spec.process.at_end",
                        "must be KILL_TREE or KEEP",
                    ));
                }
            },
            watcher: self.child_watcher(),
        };
        Ok(Plan {
            kind: WatchKind::Process,
            need: order.need(),
            order: Order::Later(Box::new(move |services| order.build(services))),
            claimed_from: None,
            spec: Spec::Process(process),
        })
    }

    fn child_watcher(&self) -> ChildWatcher {
        self.on.policy().child_watcher
    }
}

/// The daemon's environment, for children that bring none: what is UTF-8 of it, and
/// nothing that is between the daemon and its service manager.
fn own_environment() -> BTreeMap<String, String> {
    const OWN: [&str; 5] = [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "JOURNAL_STREAM",
    ];
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .collect()
}

fn stdio(field: &'static str, value: i32, absent: Stdio) -> Result<Stdio> {
    match proto::Stdio::try_from(value) {
        Ok(proto::Stdio::Unspecified) => Ok(absent),
        Ok(proto::Stdio::Null) => Ok(Stdio::Null),
        Ok(proto::Stdio::Pipe) => Ok(Stdio::Pipe),
        Err(_) => Err(Error::invalid(field, "must be NULL or PIPE")),
    }
}
