//! The state of group 0 as the records of a snapshot, and back.

use flotte_proto::{MetaHead, MetaRecord, RetainedRecord, meta_record};

use super::retained::Retained;
use super::state::{MetaState, parse_topic};
use crate::id::{GroupId, NodeId};

impl MetaState {
    /// The whole state as records, for a snapshot. Payloads are shared, not copied.
    pub fn records(&self) -> Vec<MetaRecord> {
        use meta_record::Record as R;
        let head = MetaHead {
            cluster_id: self.cluster_id,
            index: self.index,
            time_ms: self.time_ms,
            settings: Some(self.settings),
            refused_ids: self.refused.iter().map(|id| id.0).collect(),
        };
        let mut records = vec![R::Head(head)];
        records.extend(self.members.values().cloned().map(R::Member));
        let placement = self.placement.iter();
        records.extend(placement.map(|(group, placed)| R::Placement(placed.record(*group))));
        records.extend(self.ledger.records().map(R::Proposer));
        records.extend(self.will_keys.records().map(R::WillKeys));
        records.extend(self.routes.records().into_iter().map(R::Route));
        records.extend(self.retained.tree().iter().map(|(_, item)| {
            let message = Some(item.message.clone());
            R::Retained(RetainedRecord {
                message,
                index: item.index,
                time_ms: item.time_ms,
            })
        }));
        records
            .into_iter()
            .map(|record| MetaRecord {
                record: Some(record),
            })
            .collect()
    }

    /// Takes a record back from a snapshot, into a state that began as the default.
    pub fn restore(&mut self, record: MetaRecord) -> Result<(), String> {
        use meta_record::Record as R;
        match record
            .record
            .ok_or("a snapshot record of an unknown kind")?
        {
            R::Head(head) => {
                (self.cluster_id, self.index, self.time_ms) =
                    (head.cluster_id, head.index, head.time_ms);
                self.settings = head.settings.ok_or("snapshot head without settings")?;
                self.refused = head.refused_ids.into_iter().map(NodeId).collect();
            }
            R::Member(member) => {
                self.members.insert(NodeId(member.node_id), member);
            }
            R::Placement(placement) => {
                self.placement
                    .insert(GroupId(placement.group), placement.into());
            }
            R::Proposer(record) => self.ledger.restore(record),
            R::WillKeys(record) => self.will_keys.restore(record),
            R::Route(record) => self.routes.restore(record)?,
            R::Retained(record) => {
                let message = record.message.ok_or("retained record without message")?;
                let topic = parse_topic(message.topic.clone())?;
                let (index, time_ms) = (record.index, record.time_ms);
                let retained = Retained {
                    message,
                    index,
                    time_ms,
                };
                self.retained.restore(&topic, retained);
            }
        }
        Ok(())
    }
}
