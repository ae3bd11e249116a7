//! Steps 4 and 9: what the commands about policy files have in common, be they of rollouts or of locks: a file is read, what it
//! would change is shown and asked about, and it is told what came of it.

use super::{OperatorError, ask, print_json, say, tell};
use protocol::policy_file::PolicyFileErrors;
use protocol::status::{Exit, one_line};
use protocol::wire::SCHEMA;
use serde_json::json;
use std::path::Path;

/// The errors of a policy file that a server gave, in one line.
pub(super) fn unreadable(errors: &PolicyFileErrors) -> OperatorError {
    OperatorError::Policy(lines(errors).join("; "))
}

fn lines(errors: &PolicyFileErrors) -> Vec<String> {
    errors.0.iter().map(ToString::to_string).collect()
}

/// Reads a file of policies, and gives its text too. Of a file with errors all are told, a line each, or together in the one line
/// of a JSON document.
pub(super) fn read<F>(
    path: &Path,
    json: bool,
    parse: impl FnOnce(&str, &str) -> Result<F, PolicyFileErrors>,
) -> Result<(F, String), OperatorError> {
    let text = std::fs::read_to_string(path).map_err(OperatorError::file(path))?;
    match parse(&path.display().to_string(), &text) {
        Ok(file) => Ok((file, text)),
        Err(errors) if json => Err(unreadable(&errors)),
        Err(errors) => {
            let lines = lines(&errors);
            lines.iter().for_each(|line| tell(format_args!("{}", one_line(line))));
            let (path, plural) = (path.display(), if lines.len() == 1 { "" } else { "s" });
            let line = format!("{path} has {} error{plural}; nothing was set", lines.len());
            Err(OperatorError::Policy(line))
        }
    }
}

/// Prints policies as a file that can be set; `parts` is what they are in a JSON document.
pub(super) fn show(file: &str, mut parts: serde_json::Value, json: bool) -> Result<Exit, OperatorError> {
    if json {
        parts["schema"] = SCHEMA.into();
        parts["file"] = file.into();
        print_json(&parts)?;
    } else {
        say(format_args!("{}", file.trim_end()))?;
    }
    Ok(Exit::Done)
}

/// Shows what a file would change, and asks. False where it would change nothing: that is told, and there is nothing to do.
pub(super) fn agreed(changes: &[String], name: &str, yes: bool, json: bool) -> Result<bool, OperatorError> {
    if changes.is_empty() {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false }))?;
        } else {
            say(format_args!("nothing to do: {name} has these policies"))?;
        }
        return Ok(false);
    }
    changes.iter().for_each(|line| tell(format_args!("{line}")));
    ask("set this policy?", yes)?;
    Ok(true)
}

/// Tells that they were set, and what stays as it is.
pub(super) fn was_set(
    changes: &[String],
    stays: &str,
    warnings: &[String],
    json: bool,
) -> Result<Exit, OperatorError> {
    if json {
        let mut document = json!({ "schema": SCHEMA, "changed": true, "changes": changes });
        if !warnings.is_empty() {
            document["warnings"] = warnings.into();
        }
        print_json(&document)?;
    } else {
        say(format_args!("the policy is set; {stays}"))?;
    }
    Ok(Exit::Done)
}
