//! The wires between the members of a cluster, which can be cut while clients still reach everyone: a process stands
//! before each member's port for its peers. Who connects is told by the header that etcd's members send each other.

use anyhow::{Context as _, Result};
use std::net::TcpListener;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What comes before a member's id in the head of a request.
const FROM: &[u8] = b"x-server-from: ";

/// The member that is cut off: its place and its id, as it names itself to others.
type CutOff = Option<(usize, String)>;

/// All wires of a cluster. They end with it.
#[derive(Debug)]
pub(super) struct Wires {
    cut_off: watch::Sender<CutOff>,
    _tasks: JoinSet<()>,
}

impl Wires {
    /// Lays a wire to each of `listeners`' members, which listen themselves on `ports`.
    pub(super) fn lay(listeners: Vec<TcpListener>, ports: &[u16]) -> Result<Self> {
        let (cut_off, _) = watch::channel(None);
        let mut tasks = JoinSet::new();
        for (to, (listener, port)) in listeners.into_iter().zip(ports.iter().copied()).enumerate() {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener).context("no wire can be laid")?;
            let cut_off = cut_off.subscribe();
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((from, _)) = listener.accept().await {
                    connections.spawn(carry(from, port, to, cut_off.clone()));
                    // Those that ended are forgotten.
                    while connections.try_join_next().is_some() {}
                }
            });
        }
        Ok(Self { cut_off, _tasks: tasks })
    }

    /// Cuts one member off from all others, or mends all wires.
    pub(super) fn cut(&self, member: CutOff) {
        self.cut_off.send_replace(member);
    }
}

/// Carries one connection until an end closes it or it is cut.
async fn carry(mut from: TcpStream, port: u16, to: usize, mut cut_off: watch::Receiver<CutOff>) {
    let mut sender: Option<String> = None;
    let is_cut = |cut_off: &CutOff, sender: &Option<String>| {
        cut_off.as_ref().is_some_and(|(at, id)| *at == to || sender.as_ref() == Some(id))
    };
    let Ok(mut member) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        if is_cut(&cut_off.borrow_and_update(), &sender) {
            return;
        }
        tokio::select! {
            changed = cut_off.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            read = from.read(&mut there) => {
                let length = read.unwrap_or(0);
                sender = named(&there[..length]).or(sender);
                let cut = is_cut(&cut_off.borrow(), &sender);
                if length == 0 || cut || member.write_all(&there[..length]).await.is_err() {
                    return;
                }
            }
            read = member.read(&mut back) => {
                let length = read.unwrap_or(0);
                if length == 0 || from.write_all(&back[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The member that a request says it is from.
fn named(bytes: &[u8]) -> Option<String> {
    let is_start = |window: &[u8]| window.eq_ignore_ascii_case(FROM);
    let at = bytes.windows(FROM.len()).position(is_start)? + FROM.len();
    let id = bytes[at..].iter().take_while(|byte| byte.is_ascii_hexdigit());
    Some(id.map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_read_from_the_head() {
        let head = b"POST /raft HTTP/1.1\r\nX-Server-From: 8e9e05c52164694d\r\n\r\n";
        assert_eq!(named(head).as_deref(), Some("8e9e05c52164694d"));
        assert_eq!(named(b"GET /version HTTP/1.1\r\n\r\n"), None);
    }
}
