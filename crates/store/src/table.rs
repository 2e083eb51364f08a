//! The in-memory copy: one typed table a kind, in persistent maps, so that a copy is a pointer.

use std::any::Any;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::backend::LeaseId;
use crate::{Key, Resource, Revision, StoreError};

/// A record as it was at a revision. Dereferences to the record.
#[derive(Debug)]
pub struct Entry<T: ?Sized> {
    /// The commit that wrote it last, or [`Revision::UNCOMMITTED`] inside the transaction that writes it.
    pub revision: Revision,
    /// The lease that it vanishes with.
    pub lease: Option<LeaseId>,
    /// The record.
    pub value: Arc<T>,
}

impl<T: ?Sized> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, lease: self.lease, value: Arc::clone(&self.value) }
    }
}

/// Entries are equal when one commit wrote both.
impl<T: ?Sized> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && Arc::ptr_eq(&self.value, &other.value)
    }
}

impl<T: ?Sized> Deref for Entry<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A record whose type is known by its kind only.
pub(crate) type AnyRecord = Arc<dyn Any + Send + Sync>;

/// An [`Entry`] whose type is known by its kind only.
pub(crate) type AnyEntry = Entry<dyn Any + Send + Sync>;

/// The records of one kind.
#[derive(Clone)]
pub(crate) struct Table<T> {
    records: OrdMap<Key, Entry<T>>,
    /// By [`index_key`].
    indexes: OrdMap<Box<str>, Entry<T>>,
}

/// Part of a table whose reading a transaction can rely on.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Range {
    bounds: (String, String),
    in_index: bool,
}

impl Range {
    /// Every record of a kind.
    pub(crate) fn of_kind(kind: &str) -> Self {
        Self { bounds: (format!("{kind}/"), format!("{kind}0")), in_index: false }
    }

    /// The records of one account and region.
    pub(crate) fn of_scope(kind: &str, account: &str, region: &str) -> Self {
        // '0' follows '/': the first string after everything that starts with the scope.
        let bounds = (format!("{kind}/{account}/{region}/"), format!("{kind}/{account}/{region}0"));
        Self { bounds, in_index: false }
    }

    /// The records of one account and region under an index value.
    pub(crate) fn of_index(account: &str, region: &str, index: &str, value: &str) -> Self {
        let start = index_key(account, region, index, value, "");
        let mut end = start.clone();
        end.pop();
        end.push('\u{1}');
        Self { bounds: (start, end), in_index: true }
    }

    fn bounds(&self) -> (Bound<&str>, Bound<&str>) {
        (Bound::Included(&self.bounds.0), Bound::Excluded(&self.bounds.1))
    }
}

/// `index NUL account/region NUL value NUL NUL id`; a NUL in the value is doubled with U+0001, which keeps the
/// terminator unambiguous.
fn index_key(account: &str, region: &str, index: &str, value: &str, id: &str) -> String {
    let mut key =
        String::with_capacity(index.len() + account.len() + region.len() + value.len() + id.len() + 6);
    for part in [index, "\0", account, "/", region, "\0"] {
        key.push_str(part);
    }
    for c in value.chars() {
        key.push(c);
        if c == '\0' {
            key.push('\u{1}');
        }
    }
    key.push_str("\0\0");
    key.push_str(id);
    key
}

impl<T: Resource> Table<T> {
    fn new() -> Self {
        Self { records: OrdMap::new(), indexes: OrdMap::new() }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Entry<T>> {
        self.records.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Records in a range, in the order of their keys.
    pub(crate) fn range<'s>(&'s self, range: &Range) -> impl Iterator<Item = &'s Entry<T>> + use<'s, T> {
        let (records, indexes) = if range.in_index {
            (None, Some(self.indexes.range::<_, str>(range.bounds())))
        } else {
            (Some(self.records.range::<_, str>(range.bounds())), None)
        };
        records.into_iter().flatten().map(|(_, e)| e).chain(indexes.into_iter().flatten().map(|(_, e)| e))
    }

    /// Records of a scope whose id sorts after the given one.
    pub(crate) fn after<'s>(
        &'s self,
        scope: &Range,
        id: &str,
    ) -> impl Iterator<Item = &'s Entry<T>> + use<'s, T> {
        let start = format!("{}{id}", scope.bounds.0);
        let bounds = (Bound::Excluded(start.as_str()), Bound::Excluded(scope.bounds.1.as_str()));
        self.records.range::<_, str>(bounds).map(|(_, e)| e)
    }

    /// Records that differ from those of another copy of the table, as they are there and as they are here.
    pub(crate) fn changes_since<'s>(
        &'s self,
        older: &'s Self,
    ) -> impl Iterator<Item = (Option<&'s Entry<T>>, Option<&'s Entry<T>>)> {
        older.records.diff(&self.records).map(|item| match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            DiffItem::Remove(_, old) => (Some(old), None),
        })
    }

    /// Takes a record out of its indexes, but for the values that are `kept`.
    fn unindex(&mut self, record: &T, kept: &[(&'static str, String)]) {
        for value in record.indexes().into_iter().filter(|value| !kept.contains(value)) {
            let key = index_key(record.account(), record.region(), value.0, &value.1, record.id());
            self.indexes.remove(key.as_str());
        }
    }

    fn insert(&mut self, key: &Key, entry: &Entry<T>) {
        let values = entry.indexes();
        if let Some(old) = self.records.insert(key.clone(), entry.clone()) {
            self.unindex(&old, &values);
        }
        for (index, value) in values {
            let key = index_key(entry.account(), entry.region(), index, &value, entry.id());
            self.indexes.insert(key.into(), entry.clone());
        }
    }
}

/// A [`Table`] whose type is known by its kind only.
pub(crate) trait AnyTable: Any + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn copy(&self) -> Arc<dyn AnyTable>;
    fn entry(&self, key: &Key) -> Option<AnyEntry>;
    /// `entry` must be of the table's type.
    fn put(&mut self, key: &Key, entry: AnyEntry);
    fn remove(&mut self, key: &Key);
    /// Whether a range holds the same records, at the same revisions, as in another copy of the table.
    fn same(&self, other: &dyn AnyTable, range: &Range) -> bool;
}

impl<T: Resource> AnyTable for Table<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn copy(&self) -> Arc<dyn AnyTable> {
        Arc::new(self.clone())
    }

    fn entry(&self, key: &Key) -> Option<AnyEntry> {
        self.get(key).map(|e| Entry {
            revision: e.revision,
            lease: e.lease,
            value: Arc::clone(&e.value) as AnyRecord,
        })
    }

    fn put(&mut self, key: &Key, entry: AnyEntry) {
        if let Ok(value) = entry.value.downcast::<T>() {
            self.insert(key, &Entry { revision: entry.revision, lease: entry.lease, value });
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.records.remove(key) {
            self.unindex(&old, &[]);
        }
    }

    fn same(&self, other: &dyn AnyTable, range: &Range) -> bool {
        let Some(other) = other.as_any().downcast_ref::<Self>() else { return false };
        if self.records.ptr_eq(&other.records) {
            return true;
        }
        self.range(range).eq(other.range(range))
    }
}

/// What the store knows of a registered type.
pub(crate) trait Kind: Send + Sync {
    fn empty(&self) -> Arc<dyn AnyTable>;
    /// Decodes a record that is stored under `key`.
    fn decode(&self, key: &Key, bytes: &[u8]) -> Result<AnyRecord, StoreError>;
    fn encode(&self, key: &Key, record: &AnyRecord) -> Result<Vec<u8>, StoreError>;
}

struct KindOf<T>(PhantomData<fn() -> T>);

impl<T: Resource> Kind for KindOf<T> {
    fn empty(&self) -> Arc<dyn AnyTable> {
        Arc::new(Table::<T>::new())
    }

    fn decode(&self, key: &Key, bytes: &[u8]) -> Result<AnyRecord, StoreError> {
        let fail = |reason: String| StoreError::Decode { key: key.to_string(), reason };
        let record: T = serde_json::from_slice(bytes).map_err(|e| fail(e.to_string()))?;
        match Key::of(&record) {
            Ok(own) if own == *key => Ok(Arc::new(record)),
            _ => Err(fail("it says that it is another record".into())),
        }
    }

    fn encode(&self, key: &Key, record: &AnyRecord) -> Result<Vec<u8>, StoreError> {
        let fail = |reason: String| StoreError::Encode { key: key.clone(), reason };
        let record = record.downcast_ref::<T>().ok_or_else(|| fail("it is of another type".into()))?;
        serde_json::to_vec(record).map_err(|e| fail(e.to_string()))
    }
}

/// The kinds of a store.
#[derive(Default)]
pub(crate) struct Registry {
    kinds: Vec<(&'static str, Box<dyn Kind>)>,
    by_name: HashMap<&'static str, usize>,
}

impl Registry {
    /// Registering a type twice does nothing.
    ///
    /// # Panics
    /// When the kind's name cannot be part of a key.
    pub(crate) fn register<T: Resource>(&mut self) {
        assert!(Key::new(T::KIND, "a", "r", "i").is_ok(), "{:?} cannot name a kind", T::KIND);
        if !self.by_name.contains_key(T::KIND) {
            self.by_name.insert(T::KIND, self.kinds.len());
            self.kinds.push((T::KIND, Box::new(KindOf::<T>(PhantomData))));
        }
    }

    pub(crate) fn position(&self, kind: &str) -> Option<usize> {
        self.by_name.get(kind).copied()
    }

    pub(crate) fn kind(&self, position: usize) -> &dyn Kind {
        &*self.kinds[position].1
    }

    pub(crate) fn tables(&self) -> Vec<Arc<dyn AnyTable>> {
        self.kinds.iter().map(|(_, kind)| kind.empty()).collect()
    }
}
