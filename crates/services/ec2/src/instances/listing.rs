//! Reservations as DescribeInstances shows them, kept encoded, so that a listing costs what has changed since the one before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use haar_api::{Context, Encoded, EncodedItems};
use haar_records::ec2::{Image, Instance, NetworkInterface, Volume};
use haar_store::{Entry, Snapshot, Store};

use super::describe;
use crate::model::Reservation;

/// A segment with more instances than this is cut in two, if they are of more than one reservation. Smaller segments would
/// make a listing of more pieces, larger ones the encoding after a change longer.
const MOST_INSTANCES: usize = 32;

/// The encoded reservations of every account and region that was listed.
#[derive(Default)]
pub struct Listing {
    /// By the account, then by the region.
    views: Mutex<BTreeMap<String, BTreeMap<String, View>>>,
}

/// The reservations of an account and region.
struct View {
    /// What they were encoded from.
    snapshot: Snapshot,
    /// Consecutive reservations, each segment by an id that is not after its first and is after those of the segment before.
    segments: BTreeMap<String, Arc<Segment>>,
}

/// Some consecutive reservations.
struct Segment {
    /// Each with the number of its instances, sorted by id.
    reservations: Vec<(String, usize)>,
    items: EncodedItems<Reservation>,
}

/// As few instances as this are encoded for the request that asked for them, unless they are at hand.
const FEW: usize = 32;

impl Listing {
    /// Every reservation, in the order of their ids.
    pub fn all(&self, store: &Store, ctx: &Context) -> Vec<Encoded<Reservation>> {
        let (_, segments) = self.current(store, ctx);
        segments.iter().map(|segment| segment.items.run(0..segment.reservations.len())).collect()
    }

    /// Reservations with those of their instances that `choose` picks, in the order of their ids, and what else it gives.
    ///
    /// # Errors
    /// What `choose` gives.
    pub fn chosen<R, E>(
        &self,
        store: &Store,
        ctx: &Context,
        choose: impl Fn(&Snapshot) -> Result<(Vec<Entry<Instance>>, R), E>,
    ) -> Result<(Vec<Encoded<Reservation>>, R), E> {
        let snapshot = store.snapshot();
        let (mut instances, mut rest) = choose(&snapshot)?;
        if instances.len() <= FEW {
            let chosen = by_reservation(&mut instances);
            let at_hand = self.at_hand(ctx, &snapshot, chosen.clone());
            let found = at_hand.unwrap_or_else(|| chosen.map(|one| encode(ctx, &snapshot, one)).collect());
            return Ok((found, rest));
        }
        let (current, segments) = self.current(store, ctx);
        if current.revision() != snapshot.revision() {
            (instances, rest) = choose(&current)?;
        }
        let chosen: HashMap<&str, &[Entry<Instance>]> =
            by_reservation(&mut instances).map(|one| (one[0].reservation_id.as_str(), one)).collect();
        let mut found = Vec::new();
        for segment in &segments {
            // The reservations before `done` are answered, those from there up to the current one are chosen whole.
            let mut done = 0;
            for (index, (id, count)) in segment.reservations.iter().enumerate() {
                let part = chosen.get(id.as_str());
                if part.is_some_and(|instances| instances.len() == *count) {
                    continue;
                }
                found.extend((done < index).then(|| segment.items.run(done..index)));
                found.extend(part.map(|part| encode(ctx, &current, part)));
                done = index + 1;
            }
            let end = segment.reservations.len();
            found.extend((done < end).then(|| segment.items.run(done..end)));
        }
        Ok((found, rest))
    }

    /// Some reservations, where nothing has changed since the latest listing.
    fn at_hand<'c>(
        &self,
        ctx: &Context,
        snapshot: &Snapshot,
        chosen: impl Iterator<Item = &'c [Entry<Instance>]>,
    ) -> Option<Vec<Encoded<Reservation>>> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let view = views.get(&ctx.account)?.get(&ctx.region)?;
        if view.snapshot.revision() != snapshot.revision() {
            return None;
        }
        let find = |instances: &'c [Entry<Instance>]| {
            let id = &instances[0].reservation_id;
            let (_, segment) = view.segment(id)?;
            let index = segment.reservations.binary_search_by(|(known, _)| known.cmp(id)).ok()?;
            let whole = segment.reservations[index].1 == instances.len();
            Some(if whole { segment.items.run(index..index + 1) } else { encode(ctx, snapshot, instances) })
        };
        chosen.map(find).collect()
    }

    /// The latest snapshot and every segment of it.
    fn current(&self, store: &Store, ctx: &Context) -> (Snapshot, Vec<Arc<Segment>>) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken under the lock: a view never goes back.
        let snapshot = store.snapshot();
        let view = views
            .entry(ctx.account.clone())
            .or_default()
            .entry(ctx.region.clone())
            .and_modify(|view| view.follow(ctx, &snapshot))
            .or_insert_with(|| View::new(ctx, &snapshot));
        (snapshot, view.segments.values().cloned().collect())
    }
}

/// Instances by their reservation, in the order of the reservations' ids, each in the order of the launch.
fn by_reservation(instances: &mut [Entry<Instance>]) -> impl Iterator<Item = &[Entry<Instance>]> + Clone {
    instances.sort_by(|one, other| {
        let ids = one.reservation_id.cmp(&other.reservation_id);
        ids.then(one.ami_launch_index.cmp(&other.ami_launch_index))
    });
    instances.chunk_by(|one, other| one.reservation_id == other.reservation_id)
}

/// Some instances of one reservation.
fn encode(ctx: &Context, snapshot: &Snapshot, instances: &[Entry<Instance>]) -> Encoded<Reservation> {
    describe::reservation_of(ctx, snapshot, &instances[0].reservation_id, instances).into()
}

impl View {
    fn new(ctx: &Context, snapshot: &Snapshot) -> Self {
        let instances = snapshot.list::<Instance>(&ctx.account, &ctx.region);
        let ids: BTreeSet<String> = instances.map(|instance| instance.reservation_id.clone()).collect();
        let mut view = View { snapshot: snapshot.clone(), segments: BTreeMap::new() };
        view.encode(ctx, ids);
        view
    }

    /// Encodes again what the changes up to a snapshot concern.
    fn follow(&mut self, ctx: &Context, snapshot: &Snapshot) {
        if snapshot.revision() == self.snapshot.revision() {
            return;
        }
        // How an instance looks whose record is of old depends on how its image boots, which is of the library.
        let boots =
            |image: Option<&Entry<Image>>| image.map(|image| (image.is_of_library(), image.boot.clone()));
        if snapshot
            .changes_since::<Image>(&self.snapshot)
            .any(|(before, after)| boots(before) != boots(after))
        {
            *self = View::new(ctx, snapshot);
            return;
        }
        let mut stale: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for id in self.changed(ctx, snapshot) {
            let segment = self.segment(&id).map_or_else(String::new, |(key, _)| key.clone());
            stale.entry(segment).or_default().insert(id);
        }
        self.snapshot = snapshot.clone();
        for (segment, mut ids) in stale {
            if let Some(segment) = self.segments.remove(&segment) {
                ids.extend(segment.reservations.iter().map(|(id, _)| id.clone()));
            }
            self.encode(ctx, ids);
        }
    }

    /// The segment where a reservation is or belongs, with its key; none where there is no segment.
    fn segment(&self, id: &str) -> Option<(&String, &Arc<Segment>)> {
        let before = self.segments.range::<str, _>((Bound::Unbounded, Bound::Included(id))).next_back();
        before.or_else(|| self.segments.first_key_value())
    }

    /// Reservations that look otherwise than in the view's snapshot, or may.
    fn changed(&self, ctx: &Context, snapshot: &Snapshot) -> BTreeSet<String> {
        let here = |account: &str, region: &str| account == ctx.account && region == ctx.region;
        let mut found = BTreeSet::new();
        for (old, new) in snapshot.changes_since::<Instance>(&self.snapshot) {
            for instance in [old, new].into_iter().flatten().filter(|i| here(&i.account, &i.region)) {
                found.insert(instance.reservation_id.clone());
            }
        }
        let mut instances = BTreeSet::new();
        for (old, new) in snapshot.changes_since::<NetworkInterface>(&self.snapshot) {
            for eni in [old, new].into_iter().flatten().filter(|eni| here(&eni.account, &eni.region)) {
                instances.extend(eni.attachment.as_ref().map(|attachment| attachment.instance_id.as_str()));
            }
        }
        for (old, new) in snapshot.changes_since::<Volume>(&self.snapshot) {
            for volume in
                [old, new].into_iter().flatten().filter(|volume| here(&volume.account, &volume.region))
            {
                instances.extend(volume.attachments.iter().map(|attachment| attachment.instance_id.as_str()));
            }
        }
        let reservation = |id: &str| {
            let instance = snapshot.get::<Instance>(&ctx.account, &ctx.region, id)?;
            Some(instance.reservation_id.clone())
        };
        found.extend(instances.into_iter().filter_map(reservation));
        found
    }

    /// Makes segments of about the same size of reservations that no segment has; those that are gone are left out.
    fn encode(&mut self, ctx: &Context, ids: impl IntoIterator<Item = String>) {
        let all = ids.into_iter().map(|id| {
            let instances = describe::instances_of(ctx, &self.snapshot, &id);
            (id, instances)
        });
        let all: Vec<_> = all.filter(|(_, instances)| !instances.is_empty()).collect();
        let total: usize = all.iter().map(|(_, instances)| instances.len()).sum();
        let wanted = total.div_ceil(total.div_ceil(MOST_INSTANCES).max(1));
        let mut rest = all.as_slice();
        while let Some((first, _)) = rest.first() {
            let mut size = 0;
            let fits = |(_, instances): &&(String, Vec<Entry<Instance>>)| {
                let fits = size < wanted;
                size += instances.len();
                fits
            };
            let (segment, after) = rest.split_at(rest.iter().take_while(fits).count());
            let values = segment
                .iter()
                .map(|(id, instances)| describe::reservation_of(ctx, &self.snapshot, id, instances));
            let items = EncodedItems::new("item", values);
            let reservations = segment.iter().map(|(id, instances)| (id.clone(), instances.len())).collect();
            self.segments.insert(first.clone(), Arc::new(Segment { reservations, items }));
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use haar_api::xml::Writer;
    use haar_records::ec2::{BootMode, ImageBoot, InstanceState};
    use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
    use haar_store::Tx;
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;
    use crate::Handlers;
    use crate::error::Result;
    use crate::model::{DescribeInstancesRequest, Ec2, Filter, RunInstancesRequest};
    use crate::testing::{SCOPE, context, filter, handlers, write};

    const IMAGE: &str = "ami-00000000000000001";

    /// What happens between two listings. Numbers choose among what is there.
    #[derive(Debug, Clone)]
    enum Step {
        Launch(u8),
        Tag(usize, u8),
        Stop(usize),
        Forget(usize),
        Address(usize),
        Detach(usize),
        BootMode,
        List,
        Filtered,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (1_u8..9).prop_map(Step::Launch),
            2 => any::<(usize, u8)>().prop_map(|(at, label)| Step::Tag(at, label % 4)),
            2 => any::<usize>().prop_map(Step::Stop),
            4 => any::<usize>().prop_map(Step::Forget),
            1 => any::<usize>().prop_map(Step::Address),
            1 => any::<usize>().prop_map(Step::Detach),
            1 => Just(Step::BootMode),
            4 => Just(Step::List),
            2 => Just(Step::Filtered),
        ]
    }

    fn image() -> Image {
        let (root, boot) = (("/dev/xvda", 1), ImageBoot::Firmware(BootMode::LegacyBios));
        Image::new(GLOBAL_ACCOUNT, GLOBAL_REGION, IMAGE.into(), root, boot, OffsetDateTime::UNIX_EPOCH)
    }

    /// Changes the instance at a place among all.
    async fn change(handlers: &Handlers, at: usize, mut body: impl FnMut(&mut Tx, Instance)) {
        let change = |tx: &mut Tx| {
            let all: Vec<_> = tx.list::<Instance>(SCOPE.account, SCOPE.region).cloned().collect();
            if !all.is_empty() {
                let chosen = Instance::clone(&all[at % all.len()]);
                body(tx, chosen);
            }
            Ok(())
        };
        write(&handlers.store, change).await.unwrap();
    }

    async fn apply(handlers: &Handlers, step: &Step) {
        match *step {
            Step::Launch(count) => {
                let input = RunInstancesRequest {
                    image_id: Some(IMAGE.into()),
                    instance_type: Some("t3.nano".into()),
                    min_count: count.into(),
                    max_count: count.into(),
                    ..RunInstancesRequest::default()
                };
                handlers.run_instances(&context(), input).await.unwrap();
            }
            Step::Tag(at, label) => {
                change(handlers, at, |tx, mut instance| {
                    instance.tags.insert("label".into(), label.to_string());
                    tx.put(instance);
                })
                .await;
            }
            Step::Stop(at) => {
                change(handlers, at, |tx, mut instance| {
                    instance.status.state = InstanceState::Stopped;
                    tx.put(instance);
                })
                .await;
            }
            Step::Forget(at) => {
                change(handlers, at, |tx, instance| {
                    tx.delete::<Instance>(SCOPE.account, SCOPE.region, &instance.id);
                })
                .await;
            }
            Step::Address(at) => {
                change(handlers, at, |tx, instance| {
                    let id = &instance.spec.network_interfaces[0];
                    let found = tx.get::<NetworkInterface>(SCOPE.account, SCOPE.region, id).unwrap();
                    tx.put(NetworkInterface { public_address: None, ..NetworkInterface::clone(&found) });
                })
                .await;
            }
            Step::Detach(at) => {
                change(handlers, at, |tx, instance| {
                    let id = &instance.spec.block_devices[0].volume_id;
                    let found = tx.get::<Volume>(SCOPE.account, SCOPE.region, id).unwrap();
                    tx.put(Volume { attachments: Vec::new(), ..Volume::clone(&found) });
                })
                .await;
            }
            Step::BootMode => {
                write(&handlers.store, |tx| -> Result<()> {
                    tx.put(Image { boot: ImageBoot::Firmware(BootMode::Uefi), ..image() });
                    Ok(())
                })
                .await
                .unwrap();
            }
            Step::List => assert_eq!(listed(handlers, Vec::new()).await, fresh(handlers, |_| true)),
            Step::Filtered => {
                let chosen = |i: &Instance| i.tags.get("label").is_some_and(|label| label == "1");
                assert_eq!(listed(handlers, filter("tag:label", "1")).await, fresh(handlers, chosen));
                let running = |i: &Instance| i.status.state == InstanceState::Pending;
                assert_eq!(
                    listed(handlers, filter("instance-state-name", "pending")).await,
                    fresh(handlers, running)
                );
            }
        }
    }

    fn text(list: &[Encoded<Reservation>]) -> String {
        let mut w = Writer::new(haar_api::schema::Protocol::Ec2);
        w.flat("item", list);
        String::from_utf8(w.finish().into_bytes().to_vec()).unwrap()
    }

    async fn listed(handlers: &Handlers, filters: Vec<Filter>) -> String {
        let input = DescribeInstancesRequest { filters, ..DescribeInstancesRequest::default() };
        text(&handlers.describe_instances(&context(), input).await.unwrap().reservations)
    }

    /// What a listing says that nothing was kept for.
    fn fresh(handlers: &Handlers, choose: impl Fn(&Instance) -> bool) -> String {
        let snapshot = handlers.store.snapshot();
        let all = snapshot.list::<Instance>(SCOPE.account, SCOPE.region);
        let mut all: Vec<_> = all.filter(|instance| choose(instance)).cloned().collect();
        let encode = |instances: &[_]| encode(&context(), &snapshot, instances);
        text(&by_reservation(&mut all).map(encode).collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn a_listing_says_what_the_records_say(steps in prop::collection::vec(step(), 1..80)) {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let handlers = handlers().await;
                write(&handlers.store, |tx| -> Result<()> {
                    tx.put(image());
                    Ok(())
                })
                .await
                .unwrap();
                for step in steps.iter().chain([&Step::List, &Step::Filtered]) {
                    apply(&handlers, step).await;
                }
                let views = handlers.listing.views.lock().unwrap();
                let instances = |segment: &Segment| segment.reservations.iter().map(|(_, count)| count).sum::<usize>();
                for segment in views.values().flat_map(BTreeMap::values).flat_map(|view| view.segments.values()) {
                    // A segment may be one reservation (of up to 8 here) longer than wanted.
                    prop_assert!((1..MOST_INSTANCES + 8).contains(&instances(segment)));
                }
                Ok(())
            })?;
        }
    }
}
