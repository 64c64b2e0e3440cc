//! A command line to be run: the options that describe a child process.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;

use clap::Args;

use super::failure::{Failure, complain};
use super::parse;
use crate::proto::{ExecCommand, InheritedEnv, ProcessSpec, Stdio, process_spec};

/// Characters of a made-up name after the program's.
const SUFFIX_LEN: usize = 4;
/// Characters of the program's name in a made-up one.
const STEM_MAX: usize = 40;

/// What to run and where.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Set a variable, over those of your environment
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    env: Vec<(String, String)>,
    /// Working directory [default: yours]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    argv: Vec<String>,
}

impl Command {
    /// The process to ask for.
    pub(super) fn spec(&self, stdin: Stdio) -> Result<ProcessSpec, Failure> {
        let here = env::current_dir().map_err(|error| Failure::new("working directory", error))?;
        let cwd = here.join(self.cwd.as_deref().unwrap_or_default());
        let cwd = cwd
            .to_str()
            .ok_or_else(|| Failure::new("--cwd", "it is not UTF-8"))?;
        let argv = self.argv.clone();
        Ok(ProcessSpec {
            command: Some(process_spec::Command::Exec(ExecCommand {
                argv,
                ..ExecCommand::default()
            })),
            env: self.env.iter().cloned().collect(),
            inherited_env: Some(InheritedEnv {
                variables: own_environment(),
                ..InheritedEnv::default()
            }),
            cwd: cwd.trim_end_matches('/').to_owned(),
            stdin: stdin.into(),
            ..ProcessSpec::default()
        })
    }

    /// A name that is free, as good as certainly: the program's and something random.
    pub(super) fn made_up_name(&self) -> Result<String, Failure> {
        let program = self.argv.first().map(Path::new);
        let stem = program
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy();
        let fits = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        let stem: String = stem.chars().filter(fits).take(STEM_MAX).collect();
        let stem = stem.trim_start_matches(['.', '_', '-']);
        let stem = if stem.is_empty() { "cmd" } else { stem };
        let mut random = [0; SUFFIX_LEN];
        getrandom::fill(&mut random).map_err(|error| Failure::new("getrandom", error))?;
        let letters = b"abcdefghijkmnpqrstuvwxyz23456789";
        let letter = |byte: &u8| char::from(letters[usize::from(*byte) % letters.len()]);
        let suffix: String = random.iter().map(letter).collect();
        Ok(format!("{stem}-{suffix}"))
    }
}

/// Our environment, as far as a protobuf string can hold it.
fn own_environment() -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (key, value) in env::vars_os() {
        match (key.into_string(), value.into_string()) {
            (Ok(key), Ok(value)) => {
                variables.insert(key, value);
            }
            (Ok(key), Err(_)) => complain(format_args!("${key} is left out: it is not UTF-8")),
            (Err(key), _) => complain(format_args!(
                "${} is left out: it is not UTF-8",
                key.display()
            )),
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &str) -> Command {
        Command {
            env: vec![],
            cwd: None,
            argv: vec![program.to_owned()],
        }
    }

    #[test]
    fn a_made_up_name_begins_with_the_programs() {
        for (program, stem) in [("/usr/bin/make", "make-"), ("./-x", "x-"), ("ü", "cmd-")] {
            let name = command(program).made_up_name().unwrap();
            assert!(name.starts_with(stem), "{name}");
            assert_eq!(name.len(), stem.len() + SUFFIX_LEN);
        }
    }

    #[test]
    fn a_relative_directory_is_below_our_own() {
        let here = env::current_dir().unwrap();
        let spec = Command {
            cwd: Some("sub".to_owned()),
            ..command("x")
        }
        .spec(Stdio::Pipe)
        .unwrap();
        assert_eq!(Path::new(&spec.cwd), here.join("sub"));
    }
}
