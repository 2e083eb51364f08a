//! The resources that requests name, with what policies may ask of them ("Actions, resources, and condition keys for Amazon EC2" in
//! the Service Authorization Reference).

use haar_access::{Complete, Named, Query, Resource, word};
use haar_api::Context;
use haar_api::schema::{self, Kind, Operation, Part, slots};
use haar_api::value::Value;
use haar_core::Arn;
use haar_records::ec2::{
    Claim, ClaimScope, EbsDefaults, EbsSnapshot, Image, ImageDevice, Instance, KeyPair, KeyType,
    NetworkInterface, SecurityGroup, Subnet, Volume, Vpc,
};
use haar_records::iam::{REGION, Role};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Snapshot, Store};

use crate::instances::profiles;
use crate::scope::Scope;
use crate::tags::Tagged;
use crate::{defaults, images, launch_templates, subnets, tags, zones};

/// Finds the resources of EC2 in the records.
pub struct Resources(pub Store);

impl haar_access::Resources for Resources {
    fn find(&self, query: &Query<'_>) -> Vec<Resource> {
        let finder = Finder { snapshot: self.0.snapshot(), query };
        match (query.resource.name, query.named) {
            ("passed-role", Named::Id(named)) => finder.passed_role(named).into_iter().collect(),
            // Only an image that is named by a parameter takes one.
            ("parameter", Named::Id(image)) => {
                images::parameter(image).map(|name| Resource::new(query.arn(name))).into_iter().collect()
            }
            ("instance", Named::Id(id)) if id.starts_with("iip-assoc-") => {
                let instance =
                    profiles::associated(&finder.snapshot, &query.ctx.account, &query.ctx.region, id);
                let id = instance.map_or_else(|| "*".to_owned(), |instance| instance.id.clone());
                vec![finder.existing("instance", &id)]
            }
            ("any", Named::Id(id)) => match tags::type_of(id) {
                Some(resource_type) => vec![finder.existing(resource_type, id)],
                // Its handler refuses the id.
                None => vec![finder.named(finder.arn("unknown", id))],
            },
            ("tagged", Named::Id(resource_type)) => {
                vec![finder.to_make(resource_type).with("ec2:CreateAction", query.operation())]
            }
            (resource_type, Named::Id(id)) => vec![finder.existing(resource_type, id)],
            ("volume", Named::New) if query.operation() == "RunInstances" => finder.volumes_to_launch(),
            (resource_type, Named::New) => vec![finder.to_make(resource_type)],
            (resource_type, Named::Default) => finder.defaults(resource_type),
        }
    }

    /// A launch by a template uses what the template says: the version that it was allowed with, whatever is `$Latest` or `$Default` when
    /// the launch is carried out.
    fn complete(&self, ctx: &Context, operation: &'static Operation, input: &Value) -> Option<Complete> {
        let request = Part(operation.input, input);
        let wanted = request.member("LaunchTemplate").filter(|_| operation.route.name == "RunInstances")?;
        let text = |name: &str| wanted.text(&[name]).filter(|text| !text.is_empty());
        let (id, name) = (text("LaunchTemplateId"), text("LaunchTemplateName"));
        let scope = Scope::from(ctx);
        let (template_id, number, data) =
            launch_templates::named(&self.0.snapshot(), scope, id, name, text("Version"))?;
        let data = named_as_the_model(serde_json::to_value(data).ok()?);
        let template = schema::value_named(operation.input, &data)?;
        let (Value::Structure(mut given), Value::Structure(template)) = (input.clone(), template) else {
            return None;
        };
        let names = match &operation.input.kind {
            Kind::Structure(members) => slots(members).map(|(member, _)| member.name),
            _ => return None,
        };
        let groups = [request.list("SecurityGroupIds"), request.list("SecurityGroups")].concat();
        for ((name, given), template) in names.zip(&mut given).zip(template) {
            match (given, template) {
                // The groups of the template are for a request that names none.
                (_, Some(_)) if name.starts_with("SecurityGroup") && !groups.is_empty() => {}
                // Of devices and tags, those of the template come to the request's.
                (Some(Value::List(given)), Some(Value::List(more)))
                    if given.is_empty() || matches!(name, "BlockDeviceMappings" | "TagSpecifications") =>
                {
                    given.extend(more);
                }
                (given @ None, template) => *given = template,
                _ => {}
            }
        }
        // A request with both id and name is refused by its handler.
        let fixed = (id.is_none() || name.is_none()).then(|| {
            let text = |text: String| Some(Value::String(text));
            let wanted = [
                ("LaunchTemplateId", text(template_id)),
                ("LaunchTemplateName", None),
                ("Version", text(number.to_string())),
            ];
            let mut fixed = input.clone();
            for (member, value) in wanted {
                schema::set(operation.input, &mut fixed, &["LaunchTemplate", member], value);
            }
            fixed
        });
        Some(Complete { asked: Value::Structure(given), fixed })
    }
}

/// What a record says, with the names of the model: `image_id` is `ImageId`.
fn named_as_the_model(value: serde_json::Value) -> serde_json::Value {
    let camel = |name: &str| -> String {
        let parts = name.split('_').map(|part| {
            let (first, rest) = part.split_at(usize::from(!part.is_empty()));
            first.to_ascii_uppercase() + rest
        });
        parts.collect()
    };
    match value {
        serde_json::Value::Object(members) => {
            members.into_iter().map(|(name, value)| (camel(&name), named_as_the_model(value))).collect()
        }
        serde_json::Value::Array(values) => values.into_iter().map(named_as_the_model).collect(),
        other => other,
    }
}

/// One question and the records to answer it from.
struct Finder<'a> {
    snapshot: Snapshot,
    query: &'a Query<'a>,
}

impl Finder<'_> {
    fn scope(&self) -> Scope<'_> {
        Scope::from(self.query.ctx)
    }

    /// The ARN of a resource; images and snapshots belong to no account in theirs.
    fn arn(&self, resource_type: &str, id: &str) -> String {
        let Scope { account, region } = self.scope();
        let account = if matches!(resource_type, "image" | "snapshot") { "" } else { account };
        Arn::new("ec2", region, account, &format!("{resource_type}/{id}")).to_string()
    }

    fn named(&self, arn: String) -> Resource {
        // No resource of EC2 has a policy: what the caller's policies say is all that counts, whoever owns an image.
        let account = String::new();
        Resource { arn, account, ..Resource::default() }.with("ec2:Region", self.query.ctx.region.as_str())
    }

    /// A resource by its id, or the name that some types are known by.
    fn existing(&self, resource_type: &str, id: &str) -> Resource {
        let id = self.id_of(resource_type, id);
        let id = id.as_str();
        let resource = self.named(self.arn(resource_type, id));
        match resource_type {
            "instance" => {
                let resource = resource.with("ec2:InstanceID", id);
                self.recorded(resource, id, |resource, found: &Instance| {
                    let (spec, metadata) = (&found.spec, &found.spec.metadata_options);
                    resource
                        .with("ec2:InstanceType", &spec.instance_type)
                        .with("ec2:AvailabilityZone", &spec.availability_zone)
                        .with("ec2:EbsOptimized", spec.ebs_optimized.to_string())
                        .with("ec2:MetadataHttpEndpoint", enabled(metadata.http_endpoint))
                        .with("ec2:MetadataHttpTokens", tokens(metadata.http_tokens_required))
                        .with("ec2:MetadataHttpPutResponseHopLimit", metadata.hop_limit.to_string())
                        .with("ec2:RootDeviceType", "ebs")
                        .with_some(
                            "ec2:InstanceProfile",
                            spec.instance_profile.as_ref().map(|profile| &profile.arn),
                        )
                        .with("ec2:Tenancy", if spec.placement.dedicated { "dedicated" } else { "default" })
                })
            }
            "volume" => self.recorded(resource.with("ec2:VolumeID", id), id, |resource, found: &Volume| {
                let parent = found.snapshot_id.as_ref().map(|id| self.arn("snapshot", id));
                resource
                    .with("ec2:AvailabilityZone", &found.availability_zone)
                    .with("ec2:Encrypted", found.encryption.is_some().to_string())
                    .with("ec2:VolumeSize", found.size_gib.to_string())
                    .with("ec2:VolumeType", found.volume_type.as_str())
                    .with_some("ec2:VolumeIops", found.iops.map(|iops| iops.to_string()))
                    .with_some("ec2:VolumeThroughput", found.throughput.map(|most| most.to_string()))
                    .with_some("ec2:ParentSnapshot", parent)
            }),
            "snapshot" => {
                let resource = resource.with("ec2:SnapshotID", id);
                self.recorded(resource, id, |resource, found: &EbsSnapshot| {
                    resource
                        .with("ec2:Encrypted", found.encryption.is_some().to_string())
                        .with("ec2:Owner", &found.account)
                        .with("ec2:ParentVolume", self.arn("volume", &found.volume_id))
                        .with("ec2:SnapshotTime", haar_policy::date_text(found.start_time))
                        .with("ec2:VolumeSize", found.volume_size_gib.to_string())
                })
            }
            "image" => self.image(resource.with("ec2:ImageID", id).with("ec2:ImageType", "machine"), id),
            "subnet" => self.recorded(resource.with("ec2:SubnetID", id), id, |resource, found: &Subnet| {
                resource
                    .with("ec2:AvailabilityZone", &found.availability_zone)
                    .with("ec2:Vpc", self.arn("vpc", &found.vpc_id))
            }),
            "security-group" => {
                let resource = resource.with("ec2:SecurityGroupID", id);
                self.recorded(resource, id, |resource, found: &SecurityGroup| {
                    resource.with("ec2:Vpc", self.arn("vpc", &found.vpc_id))
                })
            }
            "network-interface" => {
                let resource = resource.with("ec2:NetworkInterfaceID", id);
                self.recorded(resource, id, |resource, found: &NetworkInterface| {
                    let subnet = self.snapshot.get::<Subnet>(&found.account, &found.region, &found.subnet_id);
                    resource
                        .with("ec2:Subnet", self.arn("subnet", &found.subnet_id))
                        .with("ec2:Vpc", self.arn("vpc", &found.vpc_id))
                        .with_some("ec2:AvailabilityZone", subnet.map(|s| s.availability_zone.clone()))
                })
            }
            "key-pair" => self.key_pair(resource.with("ec2:KeyPairName", id), id),
            "vpc" => self.recorded(resource.with("ec2:VpcID", id), id, |resource, _: &Vpc| {
                resource.with("ec2:Tenancy", "default")
            }),
            other => match tags::of(&self.snapshot, self.scope(), other, id) {
                Some(tags) => resource.with("aws:ResourceAccount", self.scope().account).with_tags(tags),
                None => resource,
            },
        }
    }

    /// The id by which a resource is known in its ARN.
    fn id_of(&self, resource_type: &str, named: &str) -> String {
        let Scope { account, region } = self.scope();
        let id = match resource_type {
            "launch-template" if !named.starts_with("lt-") => {
                let found = launch_templates::named(&self.snapshot, self.scope(), None, Some(named), None);
                found.map(|(id, ..)| id)
            }
            "security-group" if !named.starts_with("sg-") => self.group_id(named),
            "key-pair" if named.starts_with("key-") => {
                let pair = self.snapshot.get::<KeyPair>(account, region, named);
                pair.map(|pair| pair.name.clone())
            }
            "image" => images::resolve(&self.snapshot, named).ok(),
            _ => None,
        };
        id.unwrap_or_else(|| named.to_owned())
    }

    /// A resource with what the account's record of it says, if there is one.
    fn recorded<T: Tagged>(
        &self,
        resource: Resource,
        id: &str,
        says: impl FnOnce(Resource, &T) -> Resource,
    ) -> Resource {
        let Scope { account, region } = self.scope();
        let Some(found) = self.snapshot.get::<T>(account, region, id) else { return resource };
        says(resource.with("aws:ResourceAccount", account).with_tags(found.tags().clone()), &found)
    }

    /// The record of an image of the account, or of the library.
    fn image_record(&self, id: &str) -> Option<Entry<Image>> {
        let Scope { account, region } = self.scope();
        let own = self.snapshot.get::<Image>(account, region, id);
        own.or_else(|| self.snapshot.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id))
    }

    /// An image of the account, or of the library, with what its record says.
    fn image(&self, resource: Resource, id: &str) -> Resource {
        let Some(found) = self.image_record(id) else { return resource };
        resource
            .with("aws:ResourceAccount", &found.owner)
            .with_tags(found.tags.clone())
            .with("ec2:Owner", &found.owner)
            .with("ec2:Public", found.is_of_library().to_string())
            .with("ec2:RootDeviceType", "ebs")
    }

    fn key_pair(&self, resource: Resource, name: &str) -> Resource {
        let Scope { account, region } = self.scope();
        let Some(found) = self.snapshot.by_index::<KeyPair>(account, region, "name", name).next() else {
            return resource;
        };
        resource
            .with("aws:ResourceAccount", account)
            .with_tags(found.tags.clone())
            .with("ec2:KeyPairType", if found.key_type == KeyType::Rsa { "rsa" } else { "ed25519" })
    }

    /// A resource that is about to be made, as the request wants it.
    fn to_make(&self, resource_type: &str) -> Resource {
        let resource = self.named(self.arn(resource_type, "*"));
        let says = |path: &[&str]| self.query.word(path);
        match (resource_type, self.query.operation()) {
            ("instance", "RunInstances") => {
                let named =
                    says(&["IamInstanceProfile", "Arn"]).or_else(|| says(&["IamInstanceProfile", "Name"]));
                let profile =
                    named.and_then(|named| profiles::find(&self.snapshot, self.scope().account, &named));
                let zone = self
                    .zone(&["Placement"])
                    .or_else(|| Some(self.subnets().first()?.availability_zone.clone()));
                resource
                    .with("ec2:InstanceType", says(&["InstanceType"]).unwrap_or_else(|| "m1.small".into()))
                    .with("ec2:EbsOptimized", says(&["EbsOptimized"]).unwrap_or_else(|| "false".into()))
                    .with("ec2:RootDeviceType", "ebs")
                    .with("ec2:Tenancy", says(&["Placement", "Tenancy"]).unwrap_or_else(|| "default".into()))
                    .with_some("ec2:AvailabilityZone", zone)
                    .with_some("ec2:InstanceProfile", profile.map(|profile| profile.arn()))
                    .with_some("ec2:MetadataHttpEndpoint", says(&["MetadataOptions", "HttpEndpoint"]))
                    .with_some("ec2:MetadataHttpTokens", says(&["MetadataOptions", "HttpTokens"]))
                    .with_some(
                        "ec2:MetadataHttpPutResponseHopLimit",
                        says(&["MetadataOptions", "HttpPutResponseHopLimit"]),
                    )
            }
            ("volume", "CreateVolume") => resource
                .with(
                    "ec2:Encrypted",
                    self.is_encrypted(says(&["Encrypted"]).as_deref(), says(&["SnapshotId"]).as_deref())
                        .to_string(),
                )
                .with("ec2:VolumeType", says(&["VolumeType"]).unwrap_or_else(|| "gp2".into()))
                .with_some("ec2:AvailabilityZone", self.zone(&[]))
                .with_some("ec2:VolumeSize", says(&["Size"]))
                .with_some("ec2:VolumeIops", says(&["Iops"]))
                .with_some("ec2:VolumeThroughput", says(&["Throughput"]))
                .with_some("ec2:ParentSnapshot", says(&["SnapshotId"]).map(|id| self.arn("snapshot", &id))),
            ("snapshot", "CreateSnapshot") => {
                resource.with_some("ec2:ParentVolume", says(&["VolumeId"]).map(|id| self.arn("volume", &id)))
            }
            ("network-interface", "RunInstances") => {
                let public = says(&["NetworkInterfaces", "AssociatePublicIpAddress"]);
                let subnets = self.subnets();
                let subnet = subnets.first();
                resource
                    .with_some("ec2:AssociatePublicIpAddress", public)
                    .with_some("ec2:Subnet", subnet.map(|subnet| self.arn("subnet", &subnet.id)))
                    .with_some("ec2:Vpc", subnet.map(|subnet| self.arn("vpc", &subnet.vpc_id)))
                    .with_some("ec2:AvailabilityZone", subnet.map(|subnet| subnet.availability_zone.clone()))
            }
            ("security-group", "CreateSecurityGroup") => {
                let vpc = says(&["VpcId"]).or_else(|| Some(self.default_vpc()?.id.clone()));
                resource.with_some("ec2:Vpc", vpc.map(|id| self.arn("vpc", &id)))
            }
            _ => resource,
        }
    }

    /// Which resources a request takes that names none.
    fn defaults(&self, resource_type: &str) -> Vec<Resource> {
        let Scope { account, region } = self.scope();
        let request = self.query.request();
        let found = |ids: Vec<String>| ids.iter().map(|id| self.existing(resource_type, id)).collect();
        // Without a record of what would be taken, the permission for any of the type is asked for.
        let or_any = |ids: Vec<String>| -> Vec<Resource> {
            if ids.is_empty() { vec![self.to_make(resource_type)] } else { found(ids) }
        };
        match (self.query.operation(), resource_type) {
            ("RunInstances", "subnet")
                if request.text(&["NetworkInterfaces", "NetworkInterfaceId"]).is_some() =>
            {
                Vec::new()
            }
            ("RunInstances", "subnet") => {
                or_any(self.subnets().iter().map(|subnet| subnet.id.clone()).collect())
            }
            ("RunInstances", "security-group") => {
                let vpc = self.subnets().first().map(|subnet| subnet.vpc_id.clone());
                let vpc = vpc.or_else(|| Some(self.default_vpc()?.id.clone()));
                let group = vpc.and_then(|vpc| self.group_of(&vpc, defaults::DEFAULT_GROUP));
                or_any(group.into_iter().collect())
            }
            (_, "vpc") => or_any(self.default_vpc().map(|vpc| vpc.id.clone()).into_iter().collect()),
            ("CreateSnapshots", "volume") => {
                let instance = request.text(&["InstanceSpecification", "InstanceId"]).unwrap_or_default();
                let volumes = self.snapshot.by_index::<Volume>(account, region, "instance", instance);
                found(volumes.map(|volume| volume.id.clone()).collect())
            }
            ("DetachVolume", "instance") => {
                let volume = request.text(&["VolumeId"]).unwrap_or_default();
                let volume = self.snapshot.get::<Volume>(account, region, volume);
                let attachments = volume.map(|volume| volume.attachments.clone()).unwrap_or_default();
                found(attachments.into_iter().map(|attachment| attachment.instance_id).collect())
            }
            _ => Vec::new(),
        }
    }

    /// The subnets that a launch may use: the one that it names, else the default ones of its zone or of every zone.
    fn subnets(&self) -> Vec<Entry<Subnet>> {
        let Scope { account, region } = self.scope();
        let request = self.query.request();
        let named = request.text(&["SubnetId"]).or_else(|| request.text(&["NetworkInterfaces", "SubnetId"]));
        if let Some(id) = named {
            return self.snapshot.get::<Subnet>(account, region, id).into_iter().collect();
        }
        let zone = self.zone(&["Placement"]);
        let count = self.query.word(&["MaxCount"]).and_then(|count| count.parse().ok());
        let needed = if request.list("NetworkInterfaces").is_empty() { count.unwrap_or(1) } else { 1 };
        let best = self
            .default_vpc()
            .and_then(|vpc| subnets::best_default(&self.snapshot, &vpc, zone.as_deref(), needed));
        best.into_iter().collect()
    }

    /// The zone that the request tells the name or the id of, below these members.
    fn zone(&self, path: &[&str]) -> Option<String> {
        let says = |member| self.query.word(&[path, &[member]].concat()).filter(|text| !text.is_empty());
        says("AvailabilityZone")
            .or_else(|| zones::zone_name(self.scope().region, &says("AvailabilityZoneId")?))
    }

    /// The volumes of a launch: those of the image's devices and those that the request maps, which may change the image's.
    fn volumes_to_launch(&self) -> Vec<Resource> {
        let request = self.query.request();
        let image = request.text(&["ImageId"]).and_then(|id| self.image_record(&self.id_of("image", id)));
        let devices = image.as_ref().map_or_else(Vec::new, |image| images::devices(image));
        let mappings = request.list("BlockDeviceMappings");
        let mapping_of =
            |name: &str| mappings.iter().find(|mapping| mapping.text(&["DeviceName"]) == Some(name));
        let is_mapped = |mapping: &&Part<'_>| mapping.text(&["NoDevice"]).is_none();
        let of_image = devices.iter().map(|device| (Some(device), mapping_of(&device.device_name)));
        let of_image = of_image.filter(|(_, mapping)| mapping.is_none_or(|mapping| is_mapped(&mapping)));
        let others = mappings.iter().filter(is_mapped).filter(|mapping| {
            !devices.iter().any(|device| mapping.text(&["DeviceName"]) == Some(device.device_name.as_str()))
        });
        let others = others.map(|mapping| (None, Some(mapping)));
        let volumes = of_image.chain(others).map(|(device, mapping)| self.volume_to_launch(device, mapping));
        let volumes: Vec<_> = volumes.collect();
        // An image that is not there has a volume all the same, of which nothing is known.
        if volumes.is_empty() { vec![self.to_make("volume")] } else { volumes }
    }

    fn volume_to_launch(&self, device: Option<&ImageDevice>, mapping: Option<&Part<'_>>) -> Resource {
        let given = |member: &str| mapping.and_then(|mapping| word(*mapping, &["Ebs", member]));
        let of_device = |value: fn(&ImageDevice) -> Option<String>| device.and_then(value);
        let snapshot_id = given("SnapshotId");
        // A mapping with a snapshot of its own takes nothing from the image's.
        let inherited = device.filter(|_| snapshot_id.is_none());
        let snapshot_id = snapshot_id.or_else(|| inherited?.snapshot_id.clone());
        let encrypted = inherited.is_some_and(|device| device.encrypted)
            || self.is_encrypted(given("Encrypted").as_deref(), snapshot_id.as_deref());
        let size = given("VolumeSize").or_else(|| Some(inherited?.size_gib.to_string())).or_else(|| {
            let Scope { account, region } = self.scope();
            let snapshot = self.snapshot.get::<EbsSnapshot>(account, region, snapshot_id.as_deref()?)?;
            Some(snapshot.volume_size_gib.to_string())
        });
        let volume_type =
            given("VolumeType").or_else(|| of_device(|device| Some(device.volume_type.to_string())));
        self.named(self.arn("volume", "*"))
            .with("ec2:Encrypted", encrypted.to_string())
            .with_some("ec2:VolumeSize", size)
            .with("ec2:VolumeType", volume_type.unwrap_or_else(|| "gp2".into()))
            .with_some(
                "ec2:VolumeIops",
                given("Iops").or_else(|| of_device(|device| Some(device.iops?.to_string()))),
            )
            .with_some(
                "ec2:VolumeThroughput",
                given("Throughput").or_else(|| of_device(|device| Some(device.throughput?.to_string()))),
            )
            .with_some("ec2:ParentSnapshot", snapshot_id.map(|id| self.arn("snapshot", &id)))
    }

    /// Whether a new volume is encrypted: it is asked for, its snapshot is, or the account wants all to be.
    fn is_encrypted(&self, asked: Option<&str>, snapshot_id: Option<&str>) -> bool {
        let Scope { account, region } = self.scope();
        let defaults = self.snapshot.get::<EbsDefaults>(account, region, EbsDefaults::ID);
        let snapshot = snapshot_id.and_then(|id| self.snapshot.get::<EbsSnapshot>(account, region, id));
        asked == Some("true")
            || defaults.is_some_and(|defaults| defaults.encrypt_by_default)
            || snapshot.is_some_and(|snapshot| snapshot.encryption.is_some())
    }

    /// The role in the instance profile of this name or ARN, which the caller hands to an instance. Where there is no such profile or no
    /// role in it, its handler refuses it.
    fn passed_role(&self, named: &str) -> Option<Resource> {
        let profile = profiles::find(&self.snapshot, self.scope().account, named)?;
        let role = profile.role.as_ref()?;
        let role = self.snapshot.get::<Role>(&profile.account, REGION, role)?;
        let passed = Resource::new(role.arn()).with_tags(role.tags.clone());
        Some(passed.with("iam:PassedToService", "ec2.amazonaws.com"))
    }

    fn default_vpc(&self) -> Option<haar_store::Entry<Vpc>> {
        defaults::find(&self.snapshot, self.scope())
    }

    /// The security group of this name in the default VPC.
    fn group_id(&self, name: &str) -> Option<String> {
        self.group_of(&self.default_vpc()?.id, name)
    }

    fn group_of(&self, vpc_id: &str, name: &str) -> Option<String> {
        let scope = ClaimScope::GroupName { vpc_id, name };
        let (account, region, id) = Claim::key(self.scope().account, self.scope().region, scope);
        self.snapshot.get::<Claim>(&account, &region, &id).map(|claim| claim.holder.clone())
    }
}

fn enabled(is: bool) -> &'static str {
    if is { "enabled" } else { "disabled" }
}

fn tokens(required: bool) -> &'static str {
    if required { "required" } else { "optional" }
}

#[cfg(test)]
mod tests;
