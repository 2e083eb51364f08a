use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::backend::{Compare, LeaseId, Op, Txn, Value};
use crate::snapshot::{Snapshot, State};
use crate::table::{AnyRecord, Entry, Range};
use crate::{Exists, Key, MAX_RECORD_BYTES, Resource, Revision, StoreError};

/// A transaction being put together: reads of one snapshot, and writes that become visible all at once or not at all.
///
/// Reads through the transaction see its own writes, and are compared when it commits: if a record that [`Tx::get`]
/// returned (or did not find) has changed meanwhile, or a record has entered, changed or left what [`Tx::list`] or
/// [`Tx::by_index`] walked, the transaction runs again on a newer snapshot. Writes are compared in the same way. So
/// transactions are serializable: the outcome is as if they had run one after the other. Reads through
/// [`Tx::snapshot`] are not compared.
///
/// # Panics
/// Every method that names a record type panics when the type was not registered with the store.
pub struct Tx {
    base: Snapshot,
    work: Snapshot,
    reads: BTreeMap<Key, Option<Revision>>,
    ranges: Vec<(usize, Range, String)>,
    writes: BTreeMap<Key, Write>,
    error: Option<StoreError>,
}

struct Write {
    position: usize,
    /// None deletes.
    record: Option<AnyRecord>,
    lease: Option<LeaseId>,
}

impl Tx {
    pub(crate) fn new(base: Snapshot) -> Self {
        Self {
            work: base.clone(),
            base,
            reads: BTreeMap::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
            error: None,
        }
    }

    /// The record with this id; the transaction relies on it, or on its absence.
    pub fn get<T: Resource>(&mut self, account: &str, region: &str, id: &str) -> Option<Entry<T>> {
        self.get_key(&Key::new(T::KIND, account, region, id).ok()?)
    }

    /// The record under this key, which must be of kind `T`; the transaction relies on it, or on its absence.
    pub fn get_key<T: Resource>(&mut self, key: &Key) -> Option<Entry<T>> {
        self.rely::<T>(key);
        self.work.get_key(key)
    }

    /// The records of an account and region, sorted by id; the transaction relies on no record entering, changing
    /// or leaving there.
    pub fn list<T: Resource>(
        &mut self,
        account: &str,
        region: &str,
    ) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.rely_on_range::<T>(Range::of_scope(T::KIND, account, region), account, region);
        self.work.list(account, region)
    }

    /// The records of an account and region that have `value` in `index`, sorted by id; the transaction relies on no
    /// record entering, changing or leaving there.
    pub fn by_index<T: Resource>(
        &mut self,
        account: &str,
        region: &str,
        index: &str,
        value: &str,
    ) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.rely_on_range::<T>(Range::of_index(account, region, index, value), account, region);
        self.work.by_index(account, region, index, value)
    }

    /// Everything as this transaction sees it, its own writes included. Nothing that is read here is relied on.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.work
    }

    /// Writes a record, whether it is there already or not. A record that equals the stored one is not written.
    ///
    /// A record that cannot be stored (its key invalid, too large, not encodable) fails the commit.
    pub fn put<T: Resource>(&mut self, record: T) {
        self.write(record, None);
    }

    /// Writes a record that vanishes when the lease expires or is revoked. A later [`Tx::put`] makes it permanent.
    pub fn put_leased<T: Resource>(&mut self, record: T, lease: LeaseId) {
        self.write(record, Some(lease));
    }

    /// Writes a record that must not be there yet.
    ///
    /// # Errors
    /// [`Exists`] when it is.
    pub fn create<T: Resource>(&mut self, record: T) -> Result<(), Exists> {
        if let Ok(key) = Key::of(&record)
            && self.get_key::<T>(&key).is_some()
        {
            return Err(Exists(key));
        }
        self.put(record);
        Ok(())
    }

    /// Deletes a record and gives it back, or nothing when there is none.
    pub fn delete<T: Resource>(&mut self, account: &str, region: &str, id: &str) -> Option<Entry<T>> {
        self.delete_key(&Key::new(T::KIND, account, region, id).ok()?)
    }

    /// Deletes the record under this key, which must be of kind `T`, and gives it back, or nothing when there is none.
    pub fn delete_key<T: Resource>(&mut self, key: &Key) -> Option<Entry<T>> {
        let old = self.get_key::<T>(key)?;
        let position = self.position::<T>();
        Arc::make_mut(&mut self.work.0).remove(position, key);
        self.writes.insert(key.clone(), Write { position, record: None, lease: None });
        Some(old)
    }

    fn position<T: Resource>(&self) -> usize {
        self.base
            .0
            .registry
            .position(T::KIND)
            .unwrap_or_else(|| panic!("records of kind {:?} were not registered with the store", T::KIND))
    }

    fn rely<T: Resource>(&mut self, key: &Key) {
        if !self.reads.contains_key(key) {
            let revision = self.base.0.tables[self.position::<T>()].entry(key).map(|e| e.revision);
            self.reads.insert(key.clone(), revision);
        }
    }

    fn rely_on_range<T: Resource>(&mut self, range: Range, account: &str, region: &str) {
        let position = self.position::<T>();
        if !self.ranges.iter().any(|(p, r, _)| (*p, r) == (position, &range)) {
            self.ranges.push((position, range, format!("{}/{account}/{region}/", T::KIND)));
        }
    }

    fn write<T: Resource>(&mut self, record: T, lease: Option<LeaseId>) {
        let position = self.position::<T>();
        let key = match Key::of(&record) {
            Ok(key) => key,
            Err(e) => return self.error = self.error.take().or(Some(e)),
        };
        self.rely::<T>(&key);
        let record: AnyRecord = Arc::new(record);
        let work: &mut State = Arc::make_mut(&mut self.work.0);
        work.put(
            position,
            &key,
            Entry { revision: Revision::UNCOMMITTED, lease, value: Arc::clone(&record) },
        );
        self.writes.insert(key, Write { position, record: Some(record), lease });
    }

    /// What to commit, or nothing when the transaction changes nothing; or that it must run again, because what it
    /// relied on is no longer so in `now`.
    pub(crate) fn finish(mut self, now: &Snapshot) -> Result<Finished, StoreError> {
        if let Some(e) = self.error.take() {
            return Err(e);
        }
        let mut ops = Vec::with_capacity(self.writes.len());
        for (key, write) in &self.writes {
            let before = self.base.0.tables[write.position].entry(key);
            let Some(record) = &write.record else {
                if before.is_some() {
                    ops.push(Op::Delete { key: key.clone() });
                }
                continue;
            };
            let kind = self.base.0.registry.kind(write.position);
            let bytes = kind.encode(key, record)?;
            if bytes.len() > MAX_RECORD_BYTES {
                return Err(StoreError::TooLarge { key: key.clone(), bytes: bytes.len() });
            }
            if let Some(before) = &before
                && before.lease == write.lease
                && kind.encode(key, &before.value)? == bytes
            {
                continue;
            }
            // What memory will hold is what the bytes say, so that a restart reads what was read before it; a record
            // that does not survive the way is refused here, by itself.
            let record = kind
                .decode(key, &bytes)
                .map_err(|e| StoreError::Encode { key: key.clone(), reason: e.to_string() })?;
            ops.push(Op::Put { key: key.clone(), value: Value::decoded(bytes, record), lease: write.lease });
        }
        if ops.is_empty() {
            return Ok(Finished::Nothing);
        }
        let mut compares = Vec::with_capacity(self.reads.len() + self.ranges.len());
        for (position, range, scope) in &self.ranges {
            if !self.base.0.tables[*position].same(&*now.0.tables[*position], range) {
                return Ok(Finished::Overtaken);
            }
            compares.push(Compare::Scope { scope: scope.clone(), since: now.revision() });
        }
        compares.extend(self.reads.into_iter().map(|(key, revision)| Compare::Key { key, revision }));
        Ok(Finished::Commit(Txn { compares, ops }))
    }
}

pub(crate) enum Finished {
    Nothing,
    Overtaken,
    Commit(Txn),
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("base", &self.base.revision())
            .field("reads", &self.reads)
            .field("writes", &self.writes.keys())
            .finish_non_exhaustive()
    }
}
