//! The managed policies of AWS that exist here, written from what AWS documents that they allow (AWS Managed Policy Reference).

/// A managed policy of AWS.
#[derive(Debug)]
pub(crate) struct AwsManaged {
    /// Its name.
    pub name: &'static str,
    /// Its path.
    pub path: &'static str,
    /// Its unique id, made from its name.
    pub description: &'static str,
    /// The document.
    pub document: &'static str,
}

impl AwsManaged {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("{PREFIX}{}{}", self.path, self.name)
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

/// All of them, by name.
pub(crate) static POLICIES: &[AwsManaged] = &[AwsManaged {
    name: "AdministratorAccess",
    path: "/",
    description: "Provides full access to AWS services and resources.",
    document: r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#,
}];
