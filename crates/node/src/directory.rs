//! What the servers of a VPC's link know of its guests.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use haar_guest::{Directory, Instance, Interface, MetadataOptions, PublicAddress, PublicKey, SecurityGroup};
use haar_records::ec2::{self, Claim, ClaimScope};
use haar_store::{Snapshot, Store};
use ipnet::Ipv4Net;

use crate::Error;

/// The MTU of every link: what the host's own links carry.
pub(crate) const MTU: u16 = 1500;

/// Knows the instance profiles of instances, and gives credentials of their roles.
pub trait InstanceProfiles: Send + Sync + 'static {
    /// The profile of an instance as it is now.
    fn profile(&self, account: &str, region: &str, instance_id: &str) -> Option<haar_guest::Profile>;
}

/// The guests of one VPC, as of the latest synchronisation of its network.
pub(crate) struct Guests {
    store: Store,
    profiles: Option<Arc<dyn InstanceProfiles>>,
    view: RwLock<View>,
}

#[derive(Default)]
struct View {
    by_index: HashMap<u32, Arc<Interface>>,
    by_address: HashMap<Ipv4Addr, (Arc<Interface>, Arc<Instance>)>,
    by_public_address: HashMap<Ipv4Addr, Ipv4Addr>,
}

impl Guests {
    pub(crate) fn new(store: Store, profiles: Option<Arc<dyn InstanceProfiles>>) -> Self {
        Self { store, profiles, view: RwLock::default() }
    }

    /// Replaces what is known by these instances; `indexes` are their interfaces' in the namespace.
    pub(crate) fn replace(&self, instances: Vec<Arc<Instance>>, indexes: &HashMap<String, u32>) {
        let mut view = View::default();
        for instance in instances {
            for interface in &instance.interfaces {
                if let Some(index) = indexes.get(&interface.id) {
                    view.by_index.insert(*index, interface.clone());
                }
                if let Some(public) = interface.public_ip {
                    view.by_public_address.insert(public, interface.private_ip);
                }
                view.by_address.insert(interface.private_ip, (interface.clone(), instance.clone()));
            }
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn read<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Directory for Guests {
    fn interface_on_link(&self, ifindex: u32) -> Option<Arc<Interface>> {
        self.read(|view| view.by_index.get(&ifindex).cloned())
    }

    fn interface_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Interface>> {
        self.read(|view| view.by_address.get(&private_ip).map(|(interface, _)| interface.clone()))
    }

    fn instance_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Instance>> {
        self.read(|view| view.by_address.get(&private_ip).map(|(_, instance)| instance.clone()))
    }

    fn profile(&self, instance: &Instance) -> Option<haar_guest::Profile> {
        self.profiles.as_ref()?.profile(&instance.account, &instance.region, &instance.id)
    }

    fn public_address(&self, public_ip: Ipv4Addr) -> Option<PublicAddress> {
        if let Some(private) = self.read(|view| view.by_public_address.get(&public_ip).copied()) {
            return Some(PublicAddress::Here(private));
        }
        let (account, region, id) = Claim::key("", "", ClaimScope::PublicIp(public_ip));
        self.store.snapshot().get::<Claim>(&account, &region, &id).map(|_| PublicAddress::Elsewhere)
    }
}

/// An instance as its metadata shows it.
pub(crate) fn instance(
    snapshot: &Snapshot,
    record: &ec2::Instance,
    vpc_cidr: Ipv4Net,
) -> Result<Instance, Error> {
    let spec = &record.spec;
    let mut interfaces = Vec::with_capacity(spec.network_interfaces.len());
    for id in &spec.network_interfaces {
        let Some(eni) = snapshot.get::<ec2::NetworkInterface>(&record.account, &record.region, id) else {
            continue;
        };
        interfaces.push(Arc::new(interface(snapshot, &eni, vpc_cidr)?));
    }
    let volumes = spec.block_devices.iter().map(|device| device.device_name.clone());
    Ok(Instance {
        id: record.id.clone(),
        account: record.account.clone(),
        region: record.region.clone(),
        availability_zone: spec.availability_zone.clone(),
        availability_zone_id: ec2::zone_id(&record.region, &spec.availability_zone).unwrap_or_default(),
        partition: "aws".to_owned(),
        services_domain: "amazonaws.com".to_owned(),
        image_id: spec.image_id.clone(),
        launch_index: u32::try_from(record.ami_launch_index).unwrap_or_default(),
        reservation_id: record.reservation_id.clone(),
        instance_type: spec.instance_type.clone(),
        architecture: "x86_64".to_owned(),
        system: ec2::instance_type(&spec.instance_type)
            .map_or("nitro", |t| match t.hypervisor {
                ec2::Hypervisor::Nitro => "nitro",
                ec2::Hypervisor::Xen => "xen-on-nitro",
            })
            .to_owned(),
        launch_time: record.launch_time,
        monitoring: spec.monitoring,
        public_key: spec.key_name.clone().zip(spec.public_key.clone()).map(|(name, key)| PublicKey {
            openssh_key: if key.contains(' ') && key.split(' ').count() > 2 {
                key
            } else {
                format!("{key} {name}")
            },
            name,
        }),
        user_data: spec.user_data.as_ref().and_then(|data| BASE64.decode(data).ok()).map(Into::into),
        root_device_name: spec.root_device_name.clone(),
        volumes: volumes.filter(|name| *name != spec.root_device_name).collect(),
        interfaces,
        tags: record.tags.clone(),
        metadata_options: MetadataOptions {
            http_endpoint: spec.metadata_options.http_endpoint,
            http_tokens_required: spec.metadata_options.http_tokens_required,
            hop_limit: spec.metadata_options.hop_limit,
            instance_tags: spec.metadata_options.instance_tags,
        },
        profile: None,
    })
}

fn interface(
    snapshot: &Snapshot,
    eni: &ec2::NetworkInterface,
    vpc_cidr: Ipv4Net,
) -> Result<Interface, Error> {
    let inconsistent = |what: &str| Error::Inconsistent(format!("{}: {what}", eni.id));
    let subnet = snapshot
        .get::<ec2::Subnet>(&eni.account, &eni.region, &eni.subnet_id)
        .ok_or_else(|| inconsistent("its subnet has no record"))?;
    let name = |id: &String| {
        let group = snapshot.get::<ec2::SecurityGroup>(&eni.account, &eni.region, id);
        SecurityGroup { id: id.clone(), name: group.map_or_else(String::new, |group| group.name.clone()) }
    };
    Ok(Interface {
        id: eni.id.clone(),
        owner_id: eni.account.clone(),
        region: eni.region.clone(),
        device_index: eni.attachment.as_ref().map_or(0, |attachment| attachment.device_index),
        mac: eni.mac_address.parse().map_err(|_| inconsistent("its MAC address cannot be read"))?,
        private_ip: eni.private_ip,
        public_ip: eni.public_address.as_ref().map(|address| address.ip),
        subnet_id: eni.subnet_id.clone(),
        subnet_cidr: subnet
            .cidr_block
            .parse()
            .map_err(|_| inconsistent("its subnet's block cannot be read"))?,
        vpc_id: eni.vpc_id.clone(),
        vpc_cidr,
        security_groups: eni.groups.iter().map(name).collect(),
        mtu: MTU,
    })
}
