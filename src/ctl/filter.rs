//! Options that select events by kind, watch and label.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::complete;
use super::failure::Failure;
use super::lookup;
use super::parse;
use super::session::Session;
use crate::kinds::EVENT_KINDS;
use crate::proto::{self, EventKind, WatchRef, watch_ref};

/// Options that select events.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Select by terms `kind:KIND`, `watch:WATCH` and `label:KEY=VALUE`, separated by spaces or commas; may be repeated.
    /// An event matches if it has one of the kinds, one of the watches and all of the labels
    #[arg(long = "filter", value_name = "EXPR", value_parser = expression)]
    expressions: Vec<Terms>,
    /// Only events of this kind, or of these kinds, separated by commas; may be repeated. `ready` selects `closed` too
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = PossibleValuesParser::new(EVENT_KINDS))]
    kinds: Vec<String>,
    /// Only events of this watch: its name, or `@7` for the id 7 (`@0` for the loop itself); may be repeated
    #[arg(long = "watch", value_name = "WATCH", value_parser = parse::watch_ref, add = complete::watches())]
    watches: Vec<WatchRef>,
    /// Only events of watches with this label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
}

impl Filter {
    /// Converts the options to the daemon's filter; names of watches are looked up.
    ///
    /// # Errors
    /// There is no watch with one of the names.
    pub(super) async fn resolve(self, session: &Session) -> Result<proto::Filter, Failure> {
        let terms = self.expressions.into_iter().flat_map(|terms| terms.0);
        let mut kinds: Vec<i32> = self.kinds.iter().filter_map(|k| event_kind(k)).collect();
        let (mut watches, mut labels) = (self.watches, self.labels);
        for term in terms {
            match term {
                Term::Kind(kind) => kinds.push(kind),
                Term::Watch(watch) => watches.push(watch),
                Term::Label(key, value) => labels.push((key, value)),
            }
        }
        let mut watch_ids = Vec::new();
        for watch in &watches {
            watch_ids.push(match watch.r#ref {
                // An id is not looked up: the journal may hold events of a watch that has been removed.
                Some(watch_ref::Ref::WatchId(id)) => id,
                _ => lookup::watch(session, watch).await?.watch_id,
            });
        }
        Ok(proto::Filter {
            watch_ids,
            kinds,
            labels: labels.into_iter().collect(),
        })
    }
}

/// One term of an expression.
#[derive(Debug, Clone, PartialEq)]
enum Term {
    Kind(i32),
    Watch(WatchRef),
    Label(String, String),
}

/// The terms of one expression.
#[derive(Debug, Clone, PartialEq)]
struct Terms(Vec<Term>);

fn expression(text: &str) -> Result<Terms, String> {
    let words = text.split([',', ' ', '\t', '\n']);
    let terms: Result<Vec<_>, _> = words.filter(|word| !word.is_empty()).map(term).collect();
    let terms = terms?;
    if terms.is_empty() {
        return Err("an expression needs a term, such as `kind:exited`".to_owned());
    }
    Ok(Terms(terms))
}

fn term(word: &str) -> Result<Term, String> {
    match word.split_once(':') {
        Some(("kind", kind)) => event_kind(kind).map(Term::Kind).ok_or_else(|| {
            let kinds = EVENT_KINDS.join(", ");
            format!("`{kind}` is not a kind of event; allowed are {kinds}")
        }),
        Some(("watch", watch)) => {
            let watch = parse::watch_ref(watch).map_err(|error| format!("`{word}`: {error}"))?;
            Ok(Term::Watch(watch))
        }
        Some(("label", label)) => {
            let label = parse::key_value(label);
            let (key, value) = label.map_err(|error| format!("`{word}`: {error}"))?;
            Ok(Term::Label(key, value))
        }
        _ => Err(format!(
            "`{word}` is not a term; allowed are kind:KIND, watch:WATCH and label:KEY=VALUE"
        )),
    }
}

fn event_kind(word: &str) -> Option<i32> {
    EVENT_KINDS.iter().find(|kind| **kind == word)?;
    let name = format!("EVENT_KIND_{}", word.to_ascii_uppercase());
    EventKind::from_str_name(&name).map(i32::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_event_can_be_asked_for() {
        let kinds: Vec<_> = EVENT_KINDS
            .iter()
            .map(|kind| event_kind(kind).unwrap())
            .collect();
        let known = |number: &i32| EventKind::try_from(*number).is_ok();
        let all: Vec<_> = (1..1000).filter(known).collect();
        assert_eq!(kinds, all);
    }

    #[test]
    fn an_expression_is_terms_between_spaces_and_commas() {
        let parsed = expression("kind:exited, watch:@7,label:team=c:i=  watch:build").unwrap();
        let expected = [
            Term::Kind(EventKind::Exited.into()),
            Term::Watch(parse::by_id(7)),
            Term::Label("team".to_owned(), "c:i=".to_owned()),
            Term::Watch(parse::watch_ref("build").unwrap()),
        ];
        assert_eq!(parsed.0, expected);
    }

    #[test]
    fn a_wrong_term_says_what_is_allowed() {
        for (text, told) in [
            ("", "kind:exited"),
            (" , ", "kind:exited"),
            (
                "exited",
                "allowed are kind:KIND, watch:WATCH and label:KEY=VALUE",
            ),
            ("kinds:exited", "`kinds:exited` is not a term"),
            (
                "kind:gone",
                "`gone` is not a kind of event; allowed are added, closed",
            ),
            ("kind:", "policy_changed"),
            ("kind:Exited", "allowed are"),
            ("watch:", "a name, or an id as `@7`, is needed"),
            ("label:x", "`label:x`: KEY=VALUE is expected"),
            ("kind:exited label:=x", "KEY=VALUE"),
        ] {
            let error = expression(text).unwrap_err();
            assert!(error.contains(told) && !error.contains('\n'), "{error}");
        }
    }
}
