//! The state of group 0 as the records of a snapshot, and back.

use flotte_proto::{MetaHead, MetaRecord, RetainedRecord, meta_record};

use super::retained::Retained;
use super::state::{MetaState, parse_topic};
use crate::id::{GroupId, NodeId};
use crate::level::FeatureLevel;

impl MetaState {
    /// The whole state as records.
    pub fn records(&self) -> Vec<MetaRecord> {
        let retained = self.retained.tree().iter().map(MetaRecord::from);
        let others = self.records_but_retained().into_iter();
        others.chain(retained).collect()
    }

    /// The state but for the retained messages, which a snapshot makes records of one by one.
    pub fn records_but_retained(&self) -> Vec<MetaRecord> {
        use meta_record::Record as R;
        let head = MetaHead {
            cluster_id: self.cluster_id,
            index: self.index,
            time_ms: self.time_ms,
            settings: Some(self.settings),
            refused_ids: self.refused.iter().map(|id| id.0).collect(),
            feature_level: self.level.number(),
        };
        let mut records = vec![R::Head(head)];
        records.extend(self.members.values().cloned().map(R::Member));
        let placement = self.placement.iter();
        records.extend(placement.map(|(group, placed)| R::Placement(placed.record(*group))));
        records.extend(self.ledger.records().map(R::Proposer));
        records.extend(self.will_keys.records().map(R::WillKeys));
        records.extend(self.routes.records().into_iter().map(R::Route));
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
            .ok_or("a snapshot record of a later version")?
        {
            R::Head(head) => {
                (self.cluster_id, self.index, self.time_ms) =
                    (head.cluster_id, head.index, head.time_ms);
                self.settings = head.settings.ok_or("snapshot head without settings")?;
                self.level = FeatureLevel::said(head.feature_level);
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
                parse_topic(message.topic.clone())?;
                let retained = Retained::new(&message, record.index, record.time_ms);
                self.retained
                    .insert(retained.ok_or("a retained message that is none")?);
            }
        }
        Ok(())
    }
}

impl From<&Retained> for MetaRecord {
    fn from(retained: &Retained) -> Self {
        let record = RetainedRecord {
            message: Some(retained.message()),
            index: retained.index(),
            time_ms: retained.time_ms(),
        };
        MetaRecord {
            record: Some(meta_record::Record::Retained(record)),
        }
    }
}
