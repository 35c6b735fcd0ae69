//! From words to arguments: what is typed outweighs what the environment says.
//!
//! ```text
//!   words ─► parse ─► conflict? ─► parse again, deaf to HIKAE_KEY_FILE and HIKAE_PASSPHRASE_FILE, to HIKAE_REPO, to all
//!                         │                       └─ a key was typed, and it parses: that is what was meant
//!                         └─ none of them parses: the words themselves contradict each other
//! ```
//!
//! The parser counts a value from the environment as given, so that `HIKAE_REPO=a hikae repo verify b` would be a
//! contradiction.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::args::Arguments;

const KEYS: [&str; 2] = ["key_file", "passphrase_file"];
const REPO: [&str; 1] = ["repo_flag"];

/// Understands the words of a command line, the program's name first.
///
/// # Errors
/// What to tell the user, help and version included.
pub fn parse(words: &[OsString]) -> Result<Arguments, clap::Error> {
    let conflict = match attempt(Arguments::command(), words) {
        Err(error) if error.kind() == ErrorKind::ArgumentConflict => error,
        outcome => return outcome.map(|(arguments, _)| arguments),
    };
    let both: Vec<&str> = KEYS.into_iter().chain(REPO).collect();
    for deaf_to in [&KEYS[..], &REPO[..], &both[..]] {
        let Ok((arguments, matches)) = attempt(deaf(Arguments::command(), deaf_to), words) else {
            continue;
        };
        // Two keys in the environment and none typed: nobody can know which is meant.
        let needs_key = deaf_to.contains(&KEYS[0]);
        if !needs_key || has_key(&matches) {
            return Ok(arguments);
        }
    }
    Err(conflict)
}

/// Whether `--json` is among the words, for when they were not understood.
pub fn asks_for_json(words: &[OsString]) -> bool {
    words
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "--json")
}

fn attempt(command: Command, words: &[OsString]) -> Result<(Arguments, ArgMatches), clap::Error> {
    let mut for_errors = command.clone();
    let matches = command.try_get_matches_from(words)?;
    let arguments =
        Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut for_errors))?;
    Ok((arguments, matches))
}

/// The same command, which does not look into the environment for these arguments.
fn deaf(command: Command, to: &[&str]) -> Command {
    command
        .mut_args(|argument| {
            if to.contains(&argument.get_id().as_str()) {
                argument.env(Resettable::Reset)
            } else {
                argument
            }
        })
        .mut_subcommands(|verb| deaf(verb, to))
}

fn has_key(matches: &ArgMatches) -> bool {
    let mut deepest = matches;
    while let Some((_, next)) = deepest.subcommand() {
        deepest = next;
    }
    KEYS.into_iter()
        .chain(["recovery_key_file"])
        .any(|id| matches!(deepest.try_get_raw(id), Ok(Some(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn contradicting_words_are_refused() {
        for text in [
            "hikae repo verify a --repo b",
            "hikae disk list --repo a --key-file k --passphrase-file p",
            "hikae disk backup i --repo a --name n --changed-ranges r --audit 2",
            "hikae disk backup i --repo a --name n --audit=-1",
        ] {
            assert!(parse(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_deaf_command_understands_the_same_words() {
        let command = deaf(
            Arguments::command(),
            &["key_file", "passphrase_file", "repo_flag"],
        );
        let words = words("hikae repo verify a --key-file k");
        let (_, matches) = attempt(command, &words).expect("understood");
        assert!(has_key(&matches));
    }

    #[test]
    fn json_is_asked_for_by_its_own_word_only() {
        assert!(asks_for_json(&words("hikae --json repo")));
        assert!(!asks_for_json(&words("hikae repo -- --json")));
    }
}
