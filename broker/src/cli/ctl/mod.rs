//! `flotte ctl`: asks the admin port of a running node and shows the answer, for people or as JSON.

mod http;
mod joining;
pub mod model;
mod rebalance;
mod show;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

pub use http::CtlError;
use http::{ANSWER_TIMEOUT, Api, path_segment};
use model::{Client, Drain, Leave, LogLevel, Node, Page, Reload, Retained, Routes, Status};

use super::Exit;
use super::output::{print, print_bytes, tell};

/// How many clients are asked for at once.
const PAGE: &str = "500";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The admin port of a node.
    #[arg(
        long,
        global = true,
        default_value = "http://127.0.0.1:8080",
        env = "FLOTTE_URL"
    )]
    url: String,
    /// A file with the token to show.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The node, its cluster and its groups.
    Status,
    /// The members of the cluster.
    Nodes,
    /// Clients and their sessions.
    Clients {
        #[command(subcommand)]
        command: Option<ClientsCommand>,
    },
    /// Subscriptions of the sessions of the node that is asked.
    Subscriptions {
        /// Of this client only.
        #[arg(long, value_name = "ID")]
        client: Option<String>,
    },
    /// Where messages go.
    Routes {
        #[command(subcommand)]
        command: RoutesCommand,
    },
    /// Retained messages.
    Retained {
        #[command(subcommand)]
        command: Option<RetainedCommand>,
    },
    /// Have the node, alone so far, join the cluster of another one: it sets its data aside and starts again. It ends when the node
    /// is a member.
    Join {
        /// host:port of a node of that cluster, its cluster port.
        address: String,
        /// Also where that gives up retained messages and sessions.
        #[arg(long)]
        force: bool,
    },
    /// Have a node leave the cluster: its replicas move to others first. It ends when that is done.
    Leave {
        /// Its name; none: the node that is asked.
        node: Option<String>,
        /// Remove it at once, up or down. Refused where a group would lose its majority.
        #[arg(long, value_name = "NODE", conflicts_with_all = ["node", "stay"])]
        force: Option<String>,
        /// It stays after all.
        #[arg(long)]
        stay: bool,
    },
    /// Have the node send its clients to others and take no new ones.
    Drain {
        /// It ends then.
        #[arg(long)]
        stop: bool,
    },
    /// Have nodes with too many clients send some to those with too few, until no two differ by a tenth. It ends when that is so, or
    /// when it does not get better.
    Rebalance,
    /// Read certificates, users, rules and the log level again.
    Reload,
    /// Log more or less, until the next reload.
    Log {
        /// error, warn, info, debug or trace; or directives as warn,flotte=debug.
        level: String,
    },
}

#[derive(Debug, Subcommand)]
enum ClientsCommand {
    /// All clients (the default).
    List,
    /// One client.
    Show {
        /// The client identifier.
        id: String,
    },
    /// End the connection of a client.
    Kick {
        /// The client identifier.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum RoutesCommand {
    /// The nodes and shared subscriptions that a topic goes to.
    Match {
        /// A topic name, without wildcards.
        topic: String,
    },
}

#[derive(Debug, Subcommand)]
enum RetainedCommand {
    /// All of them, or those that match (the default).
    List {
        /// A topic filter; none: all but those of `$`.
        filter: Option<String>,
    },
    /// The payload of one, as it is.
    Get {
        /// Its topic.
        topic: String,
    },
    /// Removes one.
    Delete {
        /// Its topic.
        topic: String,
    },
}

impl Arguments {
    /// Asks, and shows the answer.
    pub fn run(self) -> Result<Exit, CtlError> {
        let api = Api::new(&self.url, self.token_file.as_deref())?;
        let text = match self.command {
            Command::Status => {
                self.answer(&api, "/status", |status: Status| show::status(&status))?
            }
            Command::Nodes => {
                self.answer(&api, "/nodes", |page: Page<Node>| show::nodes(&page.items))?
            }
            Command::Clients {
                command: None | Some(ClientsCommand::List),
            } => {
                return list(&api, self.json, "/clients", None, |page| {
                    show::clients(page)
                });
            }
            Command::Clients {
                command: Some(ClientsCommand::Show { ref id }),
            } => {
                let path = format!("/clients/{}", path_segment(id));
                self.answer(&api, &path, |client: Client| show::client(&client))?
            }
            Command::Subscriptions { client } => {
                let asked = client.map(|client| ("client", client));
                return list(&api, self.json, "/subscriptions", asked, |page| {
                    show::subscriptions(page)
                });
            }
            Command::Routes {
                command: RoutesCommand::Match { ref topic },
            } => {
                let answer: Value = api.get("/routes", &[("topic", topic)])?;
                self.shown(answer, |routes: Routes| show::routes(&routes))?
            }
            Command::Retained { command } => return retained(&api, self.json, command),
            Command::Join { address, force } => {
                return joining::join(&api, self.json, address, force);
            }
            Command::Leave { node, force, stay } => {
                return leave(&api, self.json, node, force, stay);
            }
            Command::Drain { stop } => {
                let answer: Value = api.post("/drain", &json!({ "stop": stop }))?;
                self.shown(answer, |_: Drain| "it drains\n".to_owned())?
            }
            Command::Rebalance => return rebalance::rebalance(&api, self.json),
            Command::Reload => {
                let answer: Value = api.post("/reload", &json!({}))?;
                self.shown(answer, |reload: Reload| show::reload(&reload))?
            }
            Command::Log { ref level } => {
                let answer: Value = api.post("/log", &json!({ "level": level }))?;
                self.shown(answer, |log: LogLevel| format!("log level {}\n", log.level))?
            }
            Command::Clients {
                command: Some(ClientsCommand::Kick { id }),
            } => {
                api.delete(&format!("/clients/{}", path_segment(&id)))?;
                tell(format_args!("{id} is kicked"));
                return Ok(Exit::Done);
            }
        };
        write(&text)?;
        Ok(Exit::Done)
    }

    /// The answer to a question, as it came or as `show` puts it.
    fn answer<T: serde::de::DeserializeOwned>(
        &self,
        api: &Api,
        path: &str,
        show: impl FnOnce(T) -> String,
    ) -> Result<String, CtlError> {
        self.shown(api.get(path, &[])?, show)
    }

    /// An answer as it came or as `show` puts it.
    fn shown<T: serde::de::DeserializeOwned>(
        &self,
        answer: Value,
        show: impl FnOnce(T) -> String,
    ) -> Result<String, CtlError> {
        if self.json {
            return Ok(pretty(&answer));
        }
        let answer = serde_json::from_value(answer).map_err(|error| CtlError::Strange {
            url: self.url.clone(),
            reason: error.to_string(),
        })?;
        Ok(show(answer))
    }
}

/// How long a removal by force may take: twice a barrier (2 T and an election), and T until the lease of the node is over; T is the
/// longest of all members.
fn removal_max(status: &Status) -> Duration {
    let longest = status.nodes.iter().map(|node| node.down_after_ms).max();
    ANSWER_TIMEOUT + Duration::from_millis(longest.unwrap_or(0).into()) * 5
}

fn leave(
    api: &Api,
    json: bool,
    node: Option<String>,
    force: Option<String>,
    stay: bool,
) -> Result<Exit, CtlError> {
    let is_forced = force.is_some();
    let asked = Leave {
        node: force.or(node),
        force: is_forced,
        stay,
    };
    let limit = match is_forced {
        true => removal_max(&api.get::<Status>("/status", &[])?),
        false => ANSWER_TIMEOUT,
    };
    let answer: Value = api.post_within("/cluster/leave", &json!(asked), limit)?;
    let who = asked.node.as_deref().unwrap_or("the node");
    let text = match (json, is_forced, stay) {
        (true, ..) => pretty(&answer),
        (_, true, _) => format!("{who} is removed\n"),
        (.., true) => format!("{who} stays\n"),
        _ => format!("{who} leaves, and ends when its replicas have moved\n"),
    };
    write(&text)?;
    Ok(Exit::Done)
}

fn retained(api: &Api, json: bool, command: Option<RetainedCommand>) -> Result<Exit, CtlError> {
    match command {
        None | Some(RetainedCommand::List { filter: None }) => {
            list(api, json, "/retained", None, show::retained)
        }
        Some(RetainedCommand::List {
            filter: Some(filter),
        }) => {
            let asked = Some(("filter", filter));
            list(api, json, "/retained", asked, show::retained)
        }
        Some(RetainedCommand::Get { topic }) => {
            let message: Retained = api.get("/retained", &[("topic", &topic)])?;
            if json {
                write(&pretty(&json!(message)))?;
                return Ok(Exit::Done);
            }
            let strange = |reason: String| CtlError::Strange {
                url: api.url().to_owned(),
                reason,
            };
            let encoded = message.payload_base64.unwrap_or_default();
            let payload = STANDARD
                .decode(encoded)
                .map_err(|e| strange(e.to_string()))?;
            written(print_bytes(&payload))?;
            Ok(Exit::Done)
        }
        Some(RetainedCommand::Delete { topic }) => {
            api.delete(&format!("/retained?topic={}", path_segment(&topic)))?;
            tell(format_args!("{topic} is deleted"));
            Ok(Exit::Done)
        }
    }
}

/// All pages. JSON comes as one list; people see each page as soon as it is there.
fn list<T: serde::de::DeserializeOwned>(
    api: &Api,
    json: bool,
    path: &str,
    asked: Option<(&str, String)>,
    show: impl Fn(&[T]) -> String,
) -> Result<Exit, CtlError> {
    let mut all: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE)];
        query.extend(asked.as_ref().map(|(name, value)| (*name, value.as_str())));
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let next = if json {
            let page: Page<Value> = api.get(path, &query)?;
            all.extend(page.items);
            page.next
        } else {
            let page: Page<T> = api.get(path, &query)?;
            write(&show(&page.items))?;
            page.next
        };
        // A node that sends the same cursor again would be asked for ever.
        if next.is_none() || next == cursor {
            break;
        }
        cursor = next;
    }
    if json {
        write(&pretty(&json!({ "items": all, "next": null })))?;
    }
    Ok(Exit::Done)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write(text: &str) -> Result<(), CtlError> {
    written(print(text))
}

fn written(result: std::io::Result<()>) -> Result<(), CtlError> {
    match result {
        // `flotte ctl ... | head` is not a failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CtlError::Output(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
