//! Guests that do not exist, for the tests.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use haar_guest::{
    Directory, Instance, Interface, MacAddr, MetadataOptions, PublicAddress, PublicKey, SecurityGroup,
};
use time::macros::datetime;

/// The private address of [`interface`].
pub const PRIVATE_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 5);
/// The public address of [`interface`].
pub const PUBLIC_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 5);
/// A public address that another VPC uses.
pub const FOREIGN_PUBLIC_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);

pub fn interface() -> Interface {
    Interface {
        id: "eni-0123456789abcdef0".into(),
        owner_id: "123456789012".into(),
        region: "us-east-1".into(),
        device_index: 0,
        mac: MacAddr([0x02, 0x7a, 0, 0x10, 0x20, 0x3f]),
        private_ip: PRIVATE_IP,
        public_ip: Some(PUBLIC_IP),
        subnet_id: "subnet-0123456789abcdef0".into(),
        subnet_cidr: "172.31.16.0/20".parse().unwrap(),
        vpc_id: "vpc-0123456789abcdef0".into(),
        vpc_cidr: "172.31.0.0/16".parse().unwrap(),
        security_groups: vec![
            SecurityGroup { id: "sg-0aaaaaaaaaaaaaaaa".into(), name: "default".into() },
            SecurityGroup { id: "sg-0bbbbbbbbbbbbbbbb".into(), name: "web".into() },
        ],
        mtu: 9001,
    }
}

pub fn instance() -> Instance {
    Instance {
        id: "i-0123456789abcdef0".into(),
        account: "123456789012".into(),
        region: "us-east-1".into(),
        availability_zone: "us-east-1a".into(),
        availability_zone_id: "use1-az1".into(),
        partition: "aws".into(),
        services_domain: "amazonaws.com".into(),
        image_id: "ami-0123456789abcdef0".into(),
        launch_index: 3,
        reservation_id: "r-0123456789abcdef0".into(),
        instance_type: "t3.micro".into(),
        architecture: "x86_64".into(),
        system: "nitro".into(),
        launch_time: datetime!(2026-01-31 12:00:05.25 UTC),
        monitoring: false,
        public_key: Some(PublicKey {
            name: "my key".into(),
            openssh_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ my key\n".into(),
        }),
        user_data: Some((&b"#!/bin/sh\necho \xff\n"[..]).into()),
        root_device_name: "/dev/xvda".into(),
        volumes: vec!["/dev/sdf".into(), "xvdg".into()],
        interfaces: vec![Arc::new(interface())],
        tags: BTreeMap::from([("Name".into(), "my server".into()), ("aws:a/b".into(), "unreachable".into())]),
        metadata_options: MetadataOptions {
            http_endpoint: true,
            http_tokens_required: false,
            hop_limit: 1,
            instance_tags: false,
        },
        profile: None,
    }
}

/// A directory that is filled by hand.
#[derive(Default)]
pub struct Guests {
    pub links: Mutex<HashMap<u32, Arc<Interface>>>,
    pub interfaces: Mutex<HashMap<Ipv4Addr, Arc<Interface>>>,
    pub instances: Mutex<HashMap<Ipv4Addr, Arc<Instance>>>,
}

impl Guests {
    /// A directory in which `instance` and its interfaces are.
    pub fn of(instance: Instance) -> Arc<Self> {
        let guests = Self::default();
        guests.put(instance);
        Arc::new(guests)
    }

    /// Adds `instance` and its interfaces, or replaces them.
    pub fn put(&self, instance: Instance) {
        let instance = Arc::new(instance);
        for interface in &instance.interfaces {
            self.interfaces.lock().unwrap().insert(interface.private_ip, Arc::clone(interface));
            self.instances.lock().unwrap().insert(interface.private_ip, Arc::clone(&instance));
        }
    }
}

impl Directory for Guests {
    fn interface_on_link(&self, ifindex: u32) -> Option<Arc<Interface>> {
        self.links.lock().unwrap().get(&ifindex).cloned()
    }

    fn interface_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Interface>> {
        self.interfaces.lock().unwrap().get(&private_ip).cloned()
    }

    fn instance_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Instance>> {
        self.instances.lock().unwrap().get(&private_ip).cloned()
    }

    fn public_address(&self, public_ip: Ipv4Addr) -> Option<PublicAddress> {
        if public_ip == FOREIGN_PUBLIC_IP {
            return Some(PublicAddress::Elsewhere);
        }
        let interfaces = self.interfaces.lock().unwrap();
        interfaces
            .values()
            .find(|i| i.public_ip == Some(public_ip))
            .map(|i| PublicAddress::Here(i.private_ip))
    }
}
