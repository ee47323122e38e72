//! The state of a session group as the records of a snapshot, and back.

use flotte_proto::{
    ClientRecord, GroupHead, GroupRecord, OutboxRecord, UntoldRecord, group_record,
};

use super::outbox::{FiredWill, Held};
use super::state::{Client, GroupState, node_ref, owner};
use super::untold::Ended;

impl GroupState {
    /// The whole state as records, for a snapshot.
    pub fn records(&self) -> Vec<GroupRecord> {
        use group_record::Record as R;
        let head = GroupHead {
            index: self.index,
            time_ms: self.time_ms,
            last_epoch: self.last_epoch,
            last_will_key: self.outbox.last_key,
        };
        let mut records = vec![R::Head(head)];
        records.extend(self.ledger.records().map(R::Proposer));
        records.extend(self.clients.iter().map(|(id, c)| {
            R::Client(ClientRecord {
                client: id.clone(),
                epoch: c.epoch,
                owner: c.owner().map(|node| owner(node, c.epoch)),
                home: c.home.map(|node| owner(node, c.epoch)),
                expiry_s: c.expiry_s,
                will: c.will.as_deref().cloned(),
                offline_since_ms: c.offline_since_ms,
            })
        }));
        records.extend(self.outbox.iter().map(|(key, fired)| {
            R::Outbox(OutboxRecord {
                key,
                client: fired.client.clone(),
                will: Some(fired.will.clone()),
                epoch: fired.held.map_or(0, |held| held.epoch),
                held_until_ms: fired.held.map(|held| held.until_ms),
            })
        }));
        records.extend(self.untold.iter().map(|(ended, since_ms)| {
            R::Untold(UntoldRecord {
                home: Some(owner(ended.home, ended.epoch)),
                client: ended.client,
                since_ms,
            })
        }));
        records
            .into_iter()
            .map(|record| GroupRecord {
                record: Some(record),
            })
            .collect()
    }

    /// Takes a record back from a snapshot, into a state that began as the default.
    pub fn restore(&mut self, record: GroupRecord) -> Result<(), String> {
        use group_record::Record as R;
        match record
            .record
            .ok_or("a snapshot record of an unknown kind")?
        {
            R::Head(head) => {
                (self.index, self.time_ms) = (head.index, head.time_ms);
                (self.last_epoch, self.outbox.last_key) = (head.last_epoch, head.last_will_key);
            }
            R::Proposer(record) => self.ledger.restore(record),
            R::Client(c) => {
                let client = Client {
                    epoch: c.epoch,
                    home: c.home.map(node_ref),
                    expiry_s: c.expiry_s,
                    will: c.will.map(Box::new),
                    offline_since_ms: c.offline_since_ms,
                };
                self.arm(&c.client, &client);
                self.clients.insert(c.client, client);
            }
            R::Outbox(o) => {
                let will = o.will.ok_or("outbox record without will")?;
                let held = o.held_until_ms.map(|until_ms| Held {
                    epoch: o.epoch,
                    until_ms,
                });
                let client = o.client;
                self.outbox.restore(o.key, FiredWill { client, will, held });
            }
            R::Untold(untold) => {
                let home = untold.home.ok_or("a record of a home without it")?;
                let ended = Ended {
                    epoch: home.epoch,
                    home: node_ref(home),
                    client: untold.client,
                };
                self.untold.insert(ended, untold.since_ms);
            }
        }
        Ok(())
    }
}
