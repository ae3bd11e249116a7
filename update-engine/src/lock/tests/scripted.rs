//! A server on loopback that answers exactly what a test says, and an etcd in memory to answer from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) path: String,
    headers: Vec<(String, String)>,
    pub(super) body: Value,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is a transaction that puts something.
    pub(super) fn puts(&self) -> bool {
        self.path == "/v3/kv/txn"
            && self.body["success"]
                .as_array()
                .is_some_and(|all| all.iter().any(|op| op["request_put"].is_object()))
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) enum Says {
    /// A status, further headers (each with its line end), a body.
    Status(u16, String, Vec<u8>),
    /// Nothing, until the client gives up.
    Silence,
}

impl Says {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::Status(status, String::new(), body.to_string().into_bytes())
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        Self::Status(status, String::new(), body.as_bytes().to_vec())
    }

    pub(super) fn with(self, header: &str) -> Self {
        match self {
            Self::Status(status, headers, body) => {
                Self::Status(status, format!("{headers}{header}\r\n"), body)
            }
            Self::Silence => Self::Silence,
        }
    }

    /// An error as etcd's gateway gives it.
    pub(super) fn trouble(status: u16, code: u32, message: &str) -> Self {
        Self::json(status, &json!({ "error": message, "message": message, "code": code }))
    }
}

type Handler = dyn Fn(&Asked) -> Says + Send + Sync;

/// A running server; it ends when it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(handler: impl Fn(&Asked) -> Says + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, handler): (Arc<Mutex<Vec<Asked>>>, Arc<Handler>) = (Arc::default(), Arc::new(handler));
        let record = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&handler), Arc::clone(&record)));
            }
        });
        Self { address, asked, task }
    }

    pub(super) fn url(&self) -> reqwest::Url {
        format!("http://{}/", self.address).parse().unwrap()
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, handler: Arc<Handler>, record: Arc<Mutex<Vec<Asked>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        record.lock().unwrap().push(asked.clone());
        let Says::Status(status, headers, body) = handler(&asked) else {
            // Until the client ends the connection.
            let _ = stream.read(&mut [0]).await;
            return;
        };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&body).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let pair = |line: &String| {
        line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
    };
    let headers: Vec<_> = lines[1..].iter().filter_map(pair).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { path, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

/// An etcd of one member, in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    revision: u64,
    keys: BTreeMap<String, (Vec<u8>, u64)>,
}

impl Memory {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.revision += 1;
        self.keys.insert(key.to_owned(), (value.into(), self.revision));
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.keys.get(key).map(|(value, _)| value.as_slice())
    }

    pub(super) fn json(&self, key: &str) -> Value {
        serde_json::from_slice(self.get(key).unwrap()).unwrap()
    }

    /// Puts a value as it is once more: its revision is another one.
    pub(super) fn touch(&mut self, key: &str) {
        let value = self.get(key).unwrap().to_vec();
        self.put(key, value);
    }

    /// Does what is asked.
    pub(super) fn answer(&mut self, asked: &Asked) -> Says {
        match asked.path.as_str() {
            "/v3/kv/range" => Says::json(200, &self.range(&asked.body)),
            "/v3/kv/txn" => Says::json(200, &self.txn(&asked.body)),
            other => panic!("not expected here: {other}"),
        }
    }

    fn range(&self, range: &Value) -> Value {
        let key = text(&range["key"]);
        let end = range.get("range_end").map(text);
        let is_in = |known: &String| match &end {
            None => *known == key,
            Some(end) => *known >= key && known < end,
        };
        let pair = |(key, (value, revision)): (&String, &(Vec<u8>, u64))| json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value), "mod_revision": revision.to_string() });
        json!({ "kvs": self.keys.iter().filter(|(key, _)| is_in(key)).map(pair).collect::<Vec<_>>() })
    }

    fn txn(&mut self, txn: &Value) -> Value {
        let holds = |compare: &Value| {
            assert_eq!((&compare["target"], &compare["result"]), (&json!("MOD"), &json!("EQUAL")));
            let revision = self.keys.get(&text(&compare["key"])).map_or(0, |(_, revision)| *revision);
            compare["mod_revision"].as_str() == Some(revision.to_string().as_str())
        };
        if !txn.get("compare").and_then(Value::as_array).is_none_or(|all| all.iter().all(holds)) {
            return json!({});
        }
        let mut responses = Vec::new();
        for operation in txn["success"].as_array().unwrap() {
            if let Some(put) = operation.get("request_put") {
                self.put(&text(&put["key"]), STANDARD.decode(put["value"].as_str().unwrap()).unwrap());
                responses.push(json!({ "response_put": {} }));
            } else if let Some(delete) = operation.get("request_delete_range") {
                self.keys.remove(&text(&delete["key"]));
                responses.push(json!({ "response_delete_range": {} }));
            } else {
                responses.push(json!({ "response_range": self.range(&operation["request_range"]) }));
            }
        }
        json!({ "succeeded": true, "responses": responses })
    }
}

/// A key as it is sent.
fn text(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

/// The keys that a transaction compares.
pub(super) fn compared(asked: &Asked) -> Vec<String> {
    asked.body["compare"].as_array().unwrap().iter().map(|compare| text(&compare["key"])).collect()
}
