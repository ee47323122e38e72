//! A CONNECT while its commit is under way, and its client meanwhile: for one that has gone nothing more is tried, and what
//! comes of it nevertheless is taken back.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use flotte_cluster::handle::{Opened, Refused};
use flotte_cluster::wire::Open;
use flotte_mqtt::reason::ReasonCode;
use metrics::counter;
use tokio::time::Instant;
use tracing::debug;

use super::admit::Admitted;
use super::handshake::Arrival;
use super::pending::PendingConnect;
use super::read_some;
use crate::metrics::Count;
use crate::session::Wake;

/// What a client may send behind its CONNECT before it is let in; the rest stays in its socket.
const REST_BYTES_MAX: usize = 64 << 10;
/// A client that has ended its side of the connection may still read, so an Open that is answered this soon is in time.
/// Later it has most likely gone, and is elsewhere.
const ENDED_MS: u64 = 500;

/// What is known of a client that waits for its CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    /// It sends nothing more: it has gone, or only reads.
    Ended,
    /// Its connection is lost, or its time is over.
    Gone,
}

/// An Open under way.
type Opening = Pin<Box<dyn Future<Output = Result<Opened, Refused>>>>;

impl Arrival {
    /// Commits the CONNECT. None = the client is not let in, and has been told where it is still there.
    pub(super) async fn commit(
        &self,
        admitted: &Admitted,
        rest: &mut BytesMut,
        pending: &mut PendingConnect,
    ) -> Option<Opened> {
        let shared = &self.worker.shared;
        let presence = Rc::new(Cell::new(Presence::Here));
        let mut opening = self.propose(admitted, &presence);
        let answer = self.answer(&mut opening, &presence, rest, pending).await;
        if let Some(Ok(opened)) = answer {
            return Some(opened);
        }
        let known = presence.replace(Presence::Gone);
        if answer.is_none() {
            shared.take_back(admitted.client.as_bytes().clone(), opening);
        }
        shared.registry.open_failed(&admitted.client);
        if known == Presence::Gone {
            debug!("gone before it was let in");
            counter!("flotte_connects_total", "result" => "gone").increment(1);
        } else {
            self.refuse(admitted.connect.version, ReasonCode::ServerUnavailable);
        }
        None
    }

    /// An Open that goes on for as long as its client is there and has not connected here once more.
    fn propose(&self, admitted: &Admitted, presence: &Rc<Cell<Presence>>) -> Opening {
        let shared = &self.worker.shared;
        let number = shared.registry.opening(&admitted.client);
        let open = Open {
            client: admitted.client.as_bytes().clone(),
            clean: admitted.connect.clean_start,
            expiry_s: admitted.expiry_s,
            will: admitted.will.clone(),
            ..Open::default()
        };
        let (shared, presence) = (shared.clone(), Rc::clone(presence));
        let (client, arrived) = (admitted.client.clone(), admitted.arrived);
        Box::pin(async move {
            if presence.get() == Presence::Gone {
                return Err(Refused::Overtaken);
            }
            let is_wanted =
                || presence.get() == Presence::Here && shared.registry.is_latest(&client, number);
            shared.cluster().open(open, arrived, is_wanted).await
        })
    }

    /// Waits for what becomes of the Open, and watches the client. None = it was not waited for any longer.
    async fn answer(
        &self,
        opening: &mut Opening,
        presence: &Cell<Presence>,
        rest: &mut BytesMut,
        pending: &mut PendingConnect,
    ) -> Option<Result<Opened, Refused>> {
        let limit = tokio::time::sleep(self.worker.shared.barrier_max());
        tokio::pin!(limit);
        let mut reads = true;
        loop {
            // The socket first: who has gone before the Open is proposed displaces nobody.
            tokio::select! {
                biased;
                wake = self.signal.wait() => if wake.has(Wake::TIMER) {
                    return None;
                },
                read = read_some(&self.socket, &self.worker), if reads => match read {
                    Ok(0) => {
                        presence.set(Presence::Ended);
                        reads = false;
                        let soon = Instant::now() + Duration::from_millis(ENDED_MS);
                        let sooner = limit.deadline().min(soon);
                        limit.as_mut().reset(sooner);
                    }
                    Ok(bytes) => {
                        Count::BYTES_IN.add(bytes as u64);
                        rest.extend_from_slice(&self.worker.take_read());
                        reads = pending.grow(bytes) && rest.len() < REST_BYTES_MAX;
                    }
                    Err(_) => {
                        presence.set(Presence::Gone);
                        return None;
                    }
                },
                answer = &mut *opening => return Some(answer),
                () = &mut limit => return None,
            }
        }
    }
}
