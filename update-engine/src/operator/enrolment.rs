//! Step 4, channel: `updatectl enrolment`: tokens that let nodes enrol at a server that asks for them.

use super::{Client, OperatorError, print_json, say, tell};
use clap::Subcommand;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::policy_file;
use protocol::status::{Exit, one_line};
use protocol::wire::{EnrolmentCreate, EnrolmentCreated, EnrolmentInfo, EnrolmentList, SCHEMA};
use reqwest::Method;
use serde_json::json;

/// Commands about enrolment tokens.
#[derive(Debug, Subcommand)]
pub enum EnrolmentCommand {
    /// Make a token and print it: it is shown this once only. Nodes find it in the file that server.enrolment_token_file names.
    Create {
        /// Place the nodes that come with it in this group, whatever they say themselves.
        #[arg(long)]
        group: Option<Group>,
        /// When it ends by itself, from now on, as in 30d or 12h.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<u32>,
        /// How many nodes it enrols at most.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
        /// What it is for, to tell it from others.
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// List all tokens, without their secrets, newest first.
    List,
    /// End a token for ever. Nodes that came with it stay: updatectl node revoke ends a node.
    Revoke {
        /// Its id, as list shows it.
        id: String,
    },
}

/// Seconds of a text such as `30d`.
pub(super) fn duration(text: &str) -> Result<u32, String> {
    policy_file::duration(text)
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "expected a time as in 30d, 12h or 1h30m".to_owned())
}

pub(super) async fn run(
    command: EnrolmentCommand,
    client: &Client,
    json: bool,
) -> Result<Exit, OperatorError> {
    match command {
        EnrolmentCommand::Create { group, expires, uses, note } => {
            let wish = EnrolmentCreate { schema: SCHEMA, group, expires_in_s: expires, uses, note };
            let made: EnrolmentCreated =
                client.change(Method::POST, "api/v1/enrolment-tokens", &wish).await?;
            if json {
                print_json(&made)?;
            } else {
                tell(format_args!("made {}", shown(&made.enrolment)));
                say(format_args!("{}", made.token))?;
            }
        }
        EnrolmentCommand::List => {
            let list: EnrolmentList = client.get("api/v1/enrolment-tokens").await?;
            if json {
                print_json(&list)?;
            } else {
                list.enrolments.iter().try_for_each(|token| say(format_args!("{}", shown(token))))?;
            }
        }
        EnrolmentCommand::Revoke { id } => {
            // It becomes a part of a path.
            if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                let line = format!(
                    "not the id of an enrolment token: expected 12 digits as updatectl enrolment list shows them, found {id:?}"
                );
                return Err(OperatorError::Wrong(line));
            }
            let gone = client.delete(&format!("api/v1/enrolment-tokens/{id}")).await;
            let changed = !matches!(gone, Err(OperatorError::Server { status: 409, .. }));
            if changed {
                gone?;
            }
            if json {
                print_json(&json!({ "schema": SCHEMA, "changed": changed, "id": id }))?;
            } else {
                say(format_args!("{id} {}", if changed { "is revoked" } else { "was revoked before" }))?;
            }
            return Ok(if changed { Exit::Done } else { Exit::NothingToDo });
        }
    }
    Ok(Exit::Done)
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A token on a line.
fn shown(token: &EnrolmentInfo) -> String {
    let used = token.uses.map_or_else(|| token.used.to_string(), |max| format!("{} of {max}", token.used));
    let when = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), time);
    let group = token.group.as_ref().map_or("-", Group::as_str);
    format!(
        "{}  {:8} group {group:12} used {used:10} last {:20} ends {:20} made {} by {}  {}",
        token.id,
        token.state.as_str(),
        when(token.last_used_at),
        when(token.expires_at),
        time(token.created_at),
        token.created_by,
        one_line(&token.note)
    )
    .trim_end()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::wire::EnrolmentState;

    #[test]
    fn a_token_is_shown_on_one_line() {
        let token = EnrolmentInfo {
            id: "0123456789ab".to_owned(),
            state: EnrolmentState::UsedUp,
            group: Some("web".parse().unwrap()),
            note: "rack 4\n".to_owned(),
            used: 3,
            uses: Some(3),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            created_by: "ci".to_owned(),
            expires_at: None,
            revoked_at: None,
            last_used_at: Some("2026-01-02T00:00:00Z".parse().unwrap()),
        };
        let line = shown(&token);
        assert!(!line.contains('\n'), "{line:?}");
        for part in
            ["0123456789ab  used up  group web", "used 3 of 3", "last 2026-01-02T00:00:00Z", "ends never"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(
            (duration("30d"), duration("0s").is_err(), duration("soon").is_err()),
            (Ok(2_592_000), true, true)
        );
    }
}
