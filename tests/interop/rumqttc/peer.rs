//! One client of rumqttc: its event loop runs in a task of its own, which tells what it sees and reconnects elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::request::{Address, Message, Publish, Session};
use crate::{v5, v311};

/// What an event loop has seen, in either version.
pub enum Happened {
    Connected {
        session_present: bool,
    },
    /// The return codes of a SUBACK.
    Granted(Vec<u8>),
    /// A publish of this client is complete, or sent where nothing answers it.
    Published,
    Unsubscribed,
    Message(Message),
    Other,
}

/// The event loop of one version.
pub trait Loop: Send + 'static {
    fn poll(&mut self) -> impl Future<Output = Result<Happened, String>> + Send;
    /// Where the next attempt to connect goes.
    fn go_to(&mut self, session: &Session, address: &Address) -> anyhow::Result<()>;
}

/// The end of the client that takes requests.
pub enum Handle {
    V311(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
}

/// What was answered so far.
#[derive(Clone, Copy, Default)]
struct Progress {
    published: u64,
    unsubscribed: u64,
    ended: u64,
}

pub struct Peer {
    handle: anyhow::Result<std::sync::Arc<Handle>>,
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
    /// How many publishes were asked for; one caller at a time, as answers are counted and not told apart.
    publishes: Mutex<u64>,
    unsubscribes: AtomicU64,
}

impl Peer {
    /// Starts to connect.
    pub fn open(number: u64, session: Session, tell: mpsc::Sender<Value>) -> Self {
        let (progress_sender, progress) = watch::channel(Progress::default());
        let follower = Follower {
            number,
            session,
            tell,
            progress: progress_sender,
            session_present: false,
        };
        let (handle, task) = match start(follower) {
            Ok((handle, task)) => (Ok(handle), task),
            Err(error) => (Err(error), tokio::spawn(async {})),
        };
        Self {
            handle,
            task,
            progress,
            publishes: Mutex::new(0),
            unsubscribes: AtomicU64::new(0),
        }
    }

    /// Returns once all of it is complete.
    pub async fn publish(&self, publish: Publish) -> anyhow::Result<()> {
        let mut asked = self.publishes.lock().await;
        *asked += publish.messages.len() as u64;
        match self.handle()? {
            Handle::V311(client) => v311::publish(client, publish).await?,
            Handle::V5(client) => v5::publish(client, publish).await?,
        }
        self.wait(|progress| progress.published >= *asked).await
    }

    pub async fn unsubscribe(&self, topic: String) -> anyhow::Result<()> {
        let asked = self.unsubscribes.fetch_add(1, Ordering::Relaxed) + 1;
        match self.handle()? {
            Handle::V311(client) => client.unsubscribe(topic).await?,
            Handle::V5(client) => client.unsubscribe(topic).await?,
        }
        self.wait(|progress| progress.unsubscribed >= asked).await
    }

    /// Ends with a DISCONNECT.
    pub async fn disconnect(&self) -> anyhow::Result<()> {
        let ended = self.progress.borrow().ended;
        match self.handle()? {
            Handle::V311(client) => client.disconnect().await?,
            Handle::V5(client) => client.disconnect().await?,
        }
        self.wait(|progress| progress.ended > ended).await
    }

    fn handle(&self) -> anyhow::Result<&Handle> {
        match &self.handle {
            Ok(handle) => Ok(handle),
            Err(error) => anyhow::bail!("{error:#}"),
        }
    }

    async fn wait(&self, done: impl Fn(&Progress) -> bool) -> anyhow::Result<()> {
        let mut progress = self.progress.clone();
        let waited = progress.wait_for(|progress| done(progress)).await;
        waited.map(drop).context("the event loop has ended")
    }
}

/// The socket closes with the event loop.
impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Started = (std::sync::Arc<Handle>, JoinHandle<()>);

fn start(follower: Follower) -> anyhow::Result<Started> {
    let first = follower.session.addresses.first().context("no address")?;
    if follower.session.version == "5.0" {
        let (client, events) = v5::client(&follower.session, first)?;
        let handle = std::sync::Arc::new(Handle::V5(client));
        let task = tokio::spawn(follower.run(events, handle.clone()));
        return Ok((handle, task));
    }
    let (client, events) = v311::client(&follower.session, first)?;
    let handle = std::sync::Arc::new(Handle::V311(client));
    let task = tokio::spawn(follower.run(events, handle.clone()));
    Ok((handle, task))
}

/// Polls the event loop and tells what it sees.
struct Follower {
    number: u64,
    session: Session,
    tell: mpsc::Sender<Value>,
    progress: watch::Sender<Progress>,
    /// Of the newest CONNACK.
    session_present: bool,
}

impl Follower {
    async fn run(mut self, mut events: impl Loop, handle: std::sync::Arc<Handle>) {
        let addresses = self.session.addresses.clone();
        let mut next = addresses.iter().cycle().skip(1);
        loop {
            let failed = match events.poll().await {
                Ok(happened) => self.note(happened, &handle).await.err(),
                Err(why) => Some(anyhow::anyhow!(why)),
            };
            let Some(why) = failed else { continue };
            self.tell("lost", json!({ "why": format!("{why:#}") }))
                .await;
            self.progress.send_modify(|progress| progress.ended += 1);
            // One address: it stays where it is, and ends there.
            let (1.., Some(address)) = (addresses.len() - 1, next.next()) else {
                return;
            };
            sleep(Duration::from_millis(self.session.retry_ms)).await;
            if events.go_to(&self.session, address).is_err() {
                return;
            }
        }
    }

    async fn note(&mut self, happened: Happened, handle: &Handle) -> anyhow::Result<()> {
        match happened {
            Happened::Connected { session_present } => {
                self.session_present = session_present;
                if self.session.filters.is_empty() {
                    self.connected().await;
                } else {
                    self.subscribe(handle)?;
                }
            }
            Happened::Granted(codes) => {
                let asked: Vec<u8> = self.session.filters.iter().map(|one| one.qos).collect();
                anyhow::ensure!(codes == asked, "SUBACK says {codes:?}, not {asked:?}");
                self.connected().await;
            }
            Happened::Published => self
                .progress
                .send_modify(|progress| progress.published += 1),
            Happened::Unsubscribed => {
                self.progress
                    .send_modify(|progress| progress.unsubscribed += 1);
            }
            Happened::Message(message) => {
                self.tell("message", serde_json::to_value(message)?).await;
            }
            Happened::Other => {}
        }
        Ok(())
    }

    fn subscribe(&self, handle: &Handle) -> anyhow::Result<()> {
        match handle {
            Handle::V311(client) => v311::subscribe(client, &self.session.filters),
            Handle::V5(client) => v5::subscribe(client, &self.session.filters),
        }
    }

    async fn connected(&self) {
        self.tell("connected", json!({ "present": self.session_present }))
            .await;
    }

    async fn tell(&self, event: &str, mut more: Value) {
        more["peer"] = self.number.into();
        more["event"] = event.into();
        // A failure means that the writer has ended, and soon the process.
        let _ = self.tell.send(more).await;
    }
}
