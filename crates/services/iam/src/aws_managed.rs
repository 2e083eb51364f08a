//! The managed policies of AWS that exist here, written from what AWS documents that they allow (AWS Managed Policy Reference).

/// A managed policy of AWS.
#[derive(Debug)]
pub(crate) struct AwsManaged {
    /// Its name.
    pub name: &'static str,
    /// Its path.
    pub path: &'static str,
    /// What it is, in a sentence.
    pub description: &'static str,
    /// The document.
    pub document: &'static str,
}

impl AwsManaged {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("{PREFIX}{}{}", self.path, self.name)
    }

    /// Its unique id, made from its name.
    pub fn id(&self) -> String {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(self.name);
        let letters = hash
            .iter()
            .take(17)
            .map(|byte| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(byte & 31)]));
        "ANPA".chars().chain(letters).collect()
    }
}

/// What the ARNs of these policies begin with.
pub(crate) const PREFIX: &str = "arn:aws:iam::aws:policy";

/// The policy with this ARN.
pub(crate) fn find(arn: &str) -> Option<&'static AwsManaged> {
    let rest = arn.strip_prefix(PREFIX)?;
    POLICIES.iter().find(|policy| {
        rest.strip_prefix(policy.path).is_some_and(|name| name.eq_ignore_ascii_case(policy.name))
    })
}

macro_rules! policies {
    ($($path:literal $name:literal $description:literal,)+) => {
        /// All of them, by name.
        pub(crate) static POLICIES: &[AwsManaged] = &[$(
            AwsManaged {
                name: $name,
                path: $path,
                description: $description,
                document: include_str!(concat!("aws_managed/", $name, ".json")),
            },
        )+];
    };
}

policies! {
    "/aws-service-role/" "AWSEC2SpotServiceRolePolicy" "Lets EC2 Spot launch and end Spot Instances.",
    "/aws-service-role/" "AWSElasticLoadBalancingServiceRolePolicy" "Lets Elastic Load Balancing manage the network of load balancers.",
    "/service-role/" "AWSLambdaBasicExecutionRole" "Lets a function write its logs.",
    "/service-role/" "AWSLambdaRole" "Lets a service invoke functions.",
    "/service-role/" "AWSLambdaVPCAccessExecutionRole" "Lets a function write its logs and use network interfaces of a VPC.",
    "/" "AWSLambda_FullAccess" "Provides full access to AWS Lambda.",
    "/" "AWSLambda_ReadOnlyAccess" "Provides read only access to AWS Lambda.",
    "/aws-service-role/" "AWSServiceRoleForAmazonEKSNodegroup" "Lets Amazon EKS manage the instances of node groups.",
    "/" "AdministratorAccess" "Provides full access to AWS services and resources.",
    "/service-role/" "AmazonEBSCSIDriverPolicy" "Lets the EBS driver of Kubernetes manage volumes and snapshots.",
    "/" "AmazonEC2ContainerRegistryFullAccess" "Provides administrative access to Amazon ECR.",
    "/" "AmazonEC2ContainerRegistryPowerUser" "Provides full access to Amazon ECR repositories, but not to their deletion or policies.",
    "/" "AmazonEC2ContainerRegistryPullOnly" "Provides access to pull images from Amazon ECR.",
    "/" "AmazonEC2ContainerRegistryReadOnly" "Provides read-only access to Amazon ECR repositories.",
    "/service-role/" "AmazonEC2ContainerServiceforEC2Role" "Lets an instance be a container instance of Amazon ECS.",
    "/" "AmazonEC2FullAccess" "Provides full access to Amazon EC2.",
    "/" "AmazonEC2ReadOnlyAccess" "Provides read only access to Amazon EC2.",
    "/aws-service-role/" "AmazonECSServiceRolePolicy" "Lets Amazon ECS manage what services and tasks need.",
    "/service-role/" "AmazonECSTaskExecutionRolePolicy" "Lets Amazon ECS pull the images of tasks and write their logs.",
    "/" "AmazonECS_FullAccess" "Provides administrative access to Amazon ECS.",
    "/" "AmazonEKSClusterPolicy" "Lets Amazon EKS manage what a cluster needs: load balancers, volumes, routes and security groups.",
    "/" "AmazonEKSServicePolicy" "Lets Amazon EKS make and run clusters.",
    "/aws-service-role/" "AmazonEKSServiceRolePolicy" "Lets Amazon EKS manage the network of clusters.",
    "/" "AmazonEKSVPCResourceController" "Lets the VPC resource controller manage network interfaces and addresses of nodes.",
    "/" "AmazonEKSWorkerNodeMinimalPolicy" "Lets a node join clusters of Amazon EKS, with the least permissions.",
    "/" "AmazonEKSWorkerNodePolicy" "Lets a node join clusters of Amazon EKS.",
    "/" "AmazonEKS_CNI_Policy" "Lets the VPC network plugin manage the network interfaces and addresses of nodes.",
    "/" "AmazonSSMFullAccess" "Provides full access to AWS Systems Manager.",
    "/" "AmazonSSMManagedInstanceCore" "Lets an instance use the core functions of AWS Systems Manager.",
    "/" "AmazonSSMReadOnlyAccess" "Provides read only access to AWS Systems Manager.",
    "/aws-service-role/" "AutoScalingServiceRolePolicy" "Lets EC2 Auto Scaling launch and end instances.",
    "/" "CloudWatchAgentServerPolicy" "Lets the CloudWatch agent write metrics and logs.",
    "/" "CloudWatchLogsFullAccess" "Provides full access to CloudWatch Logs.",
    "/" "CloudWatchLogsReadOnlyAccess" "Provides read only access to CloudWatch Logs.",
    "/" "IAMFullAccess" "Provides full access to IAM.",
    "/" "IAMReadOnlyAccess" "Provides read only access to IAM.",
    "/" "IAMUserChangePassword" "Provides the ability for an IAM user to change their own password.",
    "/" "PowerUserAccess" "Provides full access to AWS services and resources, but not to the management of users and groups.",
    "/" "ReadOnlyAccess" "Provides read-only access to AWS services and resources.",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use haar_policy::{Policy, PolicyKind};

    use super::*;

    #[test]
    fn all_are_managed_policies_with_ids_of_their_own() {
        let mut ids = BTreeSet::new();
        for policy in POLICIES {
            Policy::parse(policy.document, PolicyKind::Managed)
                .unwrap_or_else(|error| panic!("{}: {error}", policy.name));
            assert!(ids.insert(policy.id()), "{}", policy.name);
            assert_eq!(find(&policy.arn()).map(|found| found.name), Some(policy.name));
        }
        assert!(
            find("arn:aws:iam::aws:policy/AWSLambdaBasicExecutionRole").is_none(),
            "the path belongs to the ARN"
        );
    }
}
