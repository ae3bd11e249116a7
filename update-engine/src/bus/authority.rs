//! All steps: who may ask the engine for something. polkit decides; where it is not there, only root may.

use super::RequestError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::zvariant::Value;

/// How long polkit may think.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a person may take to give a password.
const PATIENCE_INTERACTIVE: Duration = Duration::from_secs(120);
/// `POLKIT_CHECK_AUTHORIZATION_FLAGS_ALLOW_USER_INTERACTION`
const ALLOW_USER_INTERACTION: u32 = 1;

/// What polkit answers: authorized, authorized after a challenge, details.
type Answer = (bool, bool, HashMap<String, String>);

#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority",
    gen_blocking = false
)]
trait Polkit {
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Value<'_>>),
        action_id: &str,
        details: &HashMap<&str, &str>,
        flags: u32,
        cancellation_id: &str,
    ) -> zbus::Result<Answer>;

    fn cancel_check_authorization(&self, cancellation_id: &str) -> zbus::Result<()>;
}

/// Lets the sender of this message pass, or says why not. Root always passes.
pub(super) async fn authorize(
    connection: &Connection,
    header: &Header<'_>,
    action: &str,
) -> Result<(), RequestError> {
    let refused = |why: String| RequestError::NotAuthorized(format!("not authorized for {action}: {why}"));
    let Some(sender) = header.sender() else {
        return Err(refused("the caller has no name on the bus".into()));
    };
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let uid = bus
        .get_connection_unix_user(sender.clone().into())
        .await
        .map_err(|error| refused(format!("the caller's user is not known: {error}")))?;
    if uid == 0 {
        tracing::info!("{action} is asked for by root ({sender})");
        return Ok(());
    }
    let interactive = header.primary().flags().contains(Flags::AllowInteractiveAuth);
    match ask(connection, sender, action, interactive).await {
        Ok((true, ..)) => {
            tracing::info!("{action} is asked for by user {uid} ({sender}), and polkit allows it");
            Ok(())
        }
        Ok((false, true, _)) if !interactive => Err(RequestError::InteractiveAuthorizationRequired(format!(
            "{action} needs a password: ask for it in a session where polkit can, or as root"
        ))),
        Ok(_) => Err(refused(format!("polkit does not allow it for user {uid}"))),
        Err(why) => Err(refused(format!("{why}, so only root may; the caller is user {uid}"))),
    }
}

/// Asks polkit about the sender, by its name on the bus: a process id may have become another process's by now.
async fn ask(
    connection: &Connection,
    sender: &UniqueName<'_>,
    action: &str,
    interactive: bool,
) -> Result<Answer, String> {
    static QUESTIONS: AtomicU64 = AtomicU64::new(0);
    let polkit = PolkitProxy::builder(connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(|error| format!("polkit cannot be asked ({error})"))?;
    let subject = ("system-bus-name", HashMap::from([("name", Value::from(sender.as_str()))]));
    let details = HashMap::new();
    let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
    let question = format!("update-engine-{}", QUESTIONS.fetch_add(1, Ordering::Relaxed));
    let patience = if interactive { PATIENCE_INTERACTIVE } else { PATIENCE };
    let answer = polkit.check_authorization(&subject, action, &details, flags, &question);
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(if absent(&error) {
            "polkit does not run".to_owned()
        } else {
            format!("polkit answers: {error}")
        }),
        Err(_) => {
            // Not waited for: a polkit that hangs would not answer this either.
            let _ =
                tokio::time::timeout(Duration::from_secs(1), polkit.cancel_check_authorization(&question))
                    .await;
            Err(format!("polkit did not answer within {} s", patience.as_secs()))
        }
    }
}

/// Whether nobody answers to polkit's name.
fn absent(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else { return false };
    let name = name.as_str();
    matches!(name, "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner")
        || name.starts_with("org.freedesktop.DBus.Error.Spawn.")
}
