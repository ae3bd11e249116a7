//! Step 9, permit: a running update server as operators and FleetLock v1 clients of its reboot locks see it. Nodes come
//! with a client of their own.

use crate::process::{Service, run};
use crate::programs::Programs;
use anyhow::{Context as _, Result, ensure};
use protocol::id::Group;
use protocol::lock::{ClientId, Policy, PolicyFile};
use protocol::wire::{
    FleetLockBody, FleetLockClient, FleetLockError, LockInfo, LockList, LockRelease, NodeRemove, Policies,
    PolicySet, SCHEMA,
};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::process::Command;

/// The name of the token that `update-server init` makes: who operators are here.
pub const OPERATOR: &str = "admin";

/// An update server in a folder of its own, with nothing published.
#[derive(Debug)]
pub struct LockServer {
    address: String,
    token: String,
    http: reqwest::Client,
    // In this order: the folder goes when the server is gone.
    _service: Service,
    _folder: tempfile::TempDir,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// Its body, which must be a document.
    ///
    /// # Errors
    /// Where it is none.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.body).with_context(|| format!("{}: {}", self.status, self.body))
    }

    fn ok(self) -> Result<Self> {
        ensure!(self.status.is_success(), "the server answered {}: {}", self.status, self.body);
        Ok(self)
    }
}

/// What a FleetLock v1 client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetLockSaid {
    /// 200 is a yes.
    pub status: u16,
    /// Why not, for programs and for people; none with a yes.
    pub error: Option<FleetLockError>,
    /// When to ask again, in seconds.
    pub retry_after_s: Option<u32>,
}

impl LockServer {
    /// Makes a server and starts it; `more` goes to both `init` and `serve`.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start(programs: &Programs, more: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("flipside-locks-").tempdir()?;
        let data = folder.path().join("srv");
        let command = |name: &str| {
            let mut command = Command::new(&programs.update_server);
            command.arg(name).arg("--data-dir").arg(&data).args(more).env("RUST_LOG", "warn");
            command
        };
        run(&mut command("init"))?.ok()?;
        let log = folder.path().join("server.log");
        let service = Service::start(command("serve").args(["--listen", "127.0.0.1:0"]), &log)?;
        let address = service.address()?.to_owned();
        let token = std::fs::read_to_string(data.join("admin-token"))?.trim().to_owned();
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { address, token, http, _service: service, _folder: folder })
    }

    /// Its address, without a slash at its end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.text().await? })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.address)).bearer_auth(&self.token)
    }

    /// Reads as an operator.
    ///
    /// # Errors
    /// Where it is not answered.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Acts as an operator.
    ///
    /// # Errors
    /// Where it is not answered.
    pub async fn act(
        &self,
        method: Method,
        path: &str,
        document: &(impl Serialize + Sync),
    ) -> Result<Answer> {
        self.send(self.request(method, path).json(document)).await
    }

    /// A group's lock; none where there is no such group.
    ///
    /// # Errors
    /// Where the answer is another one.
    pub async fn show(&self, group: &Group) -> Result<Option<LockInfo>> {
        let answer = self.get(&format!("/api/v1/locks/{group}")).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.ok()?.read()?))
    }

    /// All locks.
    ///
    /// # Errors
    /// Where it is not answered.
    pub async fn list(&self) -> Result<LockList> {
        self.get("/api/v1/locks").await?.ok()?.read()
    }

    /// Changes policies and caps as an operator does: reads them all, and puts them back changed.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn change_policies(
        &self,
        change: impl FnOnce(&mut PolicyFile) + Send,
        why: &str,
    ) -> Result<()> {
        let path = "/api/v1/lock-policy";
        let Policies { digest, file, .. } = self.get(path).await?.ok()?.read()?;
        let mut file = PolicyFile::parse("the server's policies", &file)?;
        change(&mut file);
        let (file, why) = (file.to_string(), why.to_owned());
        let set = PolicySet { schema: SCHEMA, replaces: digest, file, why };
        self.act(Method::PUT, path, &set).await?.ok().map(drop)
    }

    /// Sets one group's policy.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn set_policy(&self, group: &Group, policy: Policy, why: &str) -> Result<()> {
        self.change_policies(|file| _ = file.groups.insert(group.clone(), policy), why).await
    }

    /// Takes a permit away.
    ///
    /// # Errors
    /// Where it is not answered; a refusal is an answer.
    pub async fn release(&self, group: &Group, node: &ClientId, grant: u64, why: &str) -> Result<Answer> {
        let release = LockRelease { schema: SCHEMA, node: node.clone(), grant, why: why.to_owned() };
        self.act(Method::POST, &format!("/api/v1/locks/{group}/release"), &release).await
    }

    /// Removes a node; whether anything was known of it.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn remove_node(&self, node: &ClientId, why: &str) -> Result<bool> {
        let remove = NodeRemove { schema: SCHEMA, why: why.to_owned() };
        let answer = self.act(Method::POST, &format!("/api/v1/nodes/{node}/remove"), &remove).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        answer.ok().map(|_| true)
    }

    /// Asks as a FleetLock v1 client: `pre-reboot` or `steady-state`, without `Content-Type`, as Zincati does.
    ///
    /// # Errors
    /// Where it is not answered, or the answer is not the protocol's.
    pub async fn fleet_lock(&self, call: &str, node: &ClientId, group: &Group) -> Result<FleetLockSaid> {
        let client_params = FleetLockClient { id: node.to_string(), group: group.to_string() };
        let body = serde_json::to_string_pretty(&FleetLockBody { client_params })?;
        let request = self.http.post(format!("{}/v1/{call}", self.address));
        let answer = self.send(request.header("fleet-lock-protocol", "true").body(body)).await?;
        let yes = answer.status == StatusCode::OK;
        let error = if yes { None } else { Some(answer.read::<FleetLockError>()?) };
        let after = answer.headers.get(RETRY_AFTER).map(|value| value.to_str().map(str::parse::<u32>));
        Ok(FleetLockSaid {
            status: answer.status.as_u16(),
            error,
            retry_after_s: after.transpose()?.transpose()?,
        })
    }
}
