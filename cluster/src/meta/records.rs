//! The state of group 0 as the records of a snapshot, and back. Large payloads go in parts, so that neither side needs one
//! of them twice.

use std::iter;

use bytes::Bytes;
use flotte_proto::{AssemblyRecord, MetaHead, MetaRecord, RetainedRecord, meta_record};

use super::assemblies::{Held, PART_BYTES, PAYLOAD_BYTES_MAX};
use super::retained::Retained;
use super::state::{MetaState, parse_topic};
use crate::id::{GroupId, NodeId};
use crate::level::FeatureLevel;

/// A payload of which a snapshot has brought a part.
#[derive(Debug)]
pub(super) struct Restoring {
    of: Of,
    /// Has its full capacity from the beginning.
    data: Vec<u8>,
    bytes: u64,
}

#[derive(Debug)]
enum Of {
    Retained(RetainedRecord),
    Assembly(AssemblyRecord),
}

impl MetaState {
    /// The whole state as records.
    pub fn records(&self) -> Vec<MetaRecord> {
        let retained = self.retained.tree().iter().flat_map(retained_records);
        let assemblies = self.assemblies.records();
        let assemblies = assemblies.flat_map(|(record, data)| assembly_records(record, data));
        let others = self.records_but_retained().into_iter();
        others.chain(assemblies).chain(retained).collect()
    }

    /// The state but for the retained messages, and those under way, which a snapshot makes records of one by one.
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
        records.into_iter().map(whole).collect()
    }

    /// Takes a record back from a snapshot, into a state that began as the default.
    pub fn restore(&mut self, record: MetaRecord) -> Result<(), String> {
        use meta_record::Record as R;
        let record = record
            .record
            .ok_or("a snapshot record of a later version")?;
        if let R::PayloadPart(part) = record {
            return self.restore_part(&part);
        }
        self.restored()?;
        match record {
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
            R::Retained(record) if record.payload_bytes > 0 => {
                let bytes = record.payload_bytes;
                self.expect_parts(Of::Retained(record), bytes)?;
            }
            R::Retained(record) => self.restore_retained(record, None)?,
            R::Assembly(record) if record.held_bytes > 0 => {
                let bytes = record.held_bytes;
                self.expect_parts(Of::Assembly(record), bytes)?;
            }
            R::Assembly(record) => self.restore_assembly(&record, &[])?,
            R::PayloadPart(_) => {}
        }
        Ok(())
    }

    /// Whether what was taken back is whole.
    pub fn restored(&self) -> Result<(), String> {
        match self.restoring {
            Some(_) => Err("a payload that ends too early".into()),
            None => Ok(()),
        }
    }

    fn expect_parts(&mut self, of: Of, bytes: u64) -> Result<(), String> {
        let capacity = usize::try_from(bytes).ok();
        let capacity = capacity.filter(|_| bytes <= PAYLOAD_BYTES_MAX);
        let data = Vec::with_capacity(capacity.ok_or("a payload that is too large")?);
        self.restoring = Some(Box::new(Restoring { of, data, bytes }));
        Ok(())
    }

    fn restore_part(&mut self, part: &[u8]) -> Result<(), String> {
        let mut restoring = self.restoring.take().ok_or("a part of no payload")?;
        let left = restoring.bytes - restoring.data.len() as u64;
        if part.is_empty() || part.len() as u64 > left {
            return Err("a part that does not belong to its payload".into());
        }
        restoring.data.extend_from_slice(part);
        if (part.len() as u64) < left {
            self.restoring = Some(restoring);
            return Ok(());
        }
        let Restoring { of, data, .. } = *restoring;
        match of {
            Of::Retained(record) => self.restore_retained(record, Some(data.into())),
            Of::Assembly(record) => self.restore_assembly(&record, &data),
        }
    }

    fn restore_retained(
        &mut self,
        record: RetainedRecord,
        payload: Option<Bytes>,
    ) -> Result<(), String> {
        let mut message = record.message.ok_or("retained record without message")?;
        if let Some(payload) = payload {
            message.payload = payload;
        }
        parse_topic(message.topic.clone())?;
        let retained = Retained::new(&message, record.index, record.time_ms);
        self.retained
            .insert(retained.ok_or("a retained message that is none")?);
        Ok(())
    }

    fn restore_assembly(&mut self, record: &AssemblyRecord, held: &[u8]) -> Result<(), String> {
        let (node, number) = (NodeId(record.node_id), record.number);
        let all = &mut self.assemblies;
        let begun = all.begin(node, number, record.payload_bytes, record.bytes);
        let taken = begun && (held.is_empty() || all.append(node, number, 0, held));
        match taken {
            true => Ok(()),
            false => Err("a payload under way that is none".into()),
        }
    }
}

fn whole(record: meta_record::Record) -> MetaRecord {
    MetaRecord {
        record: Some(record),
    }
}

/// A retained message, and the parts of its payload if that is large.
pub(super) fn retained_records(retained: &Retained) -> impl Iterator<Item = MetaRecord> + use<> {
    let mut message = retained.message();
    let mut apart = Bytes::new();
    if retained.is_large() {
        apart = std::mem::take(&mut message.payload);
    }
    let record = RetainedRecord {
        message: Some(message),
        index: retained.index(),
        time_ms: retained.time_ms(),
        payload_bytes: apart.len() as u64,
    };
    iter::once(whole(meta_record::Record::Retained(record))).chain(parts(apart))
}

/// A payload under way, and the parts that have come.
pub(super) fn assembly_records(
    record: AssemblyRecord,
    held: Held,
) -> impl Iterator<Item = MetaRecord> {
    let parts = held.into_parts().map(meta_record::Record::PayloadPart);
    iter::once(whole(meta_record::Record::Assembly(record))).chain(parts.map(whole))
}

fn parts(mut payload: Bytes) -> impl Iterator<Item = MetaRecord> {
    iter::from_fn(move || {
        let part = payload.split_to(payload.len().min(PART_BYTES));
        (!part.is_empty()).then(|| whole(meta_record::Record::PayloadPart(part)))
    })
}
