//! Routes from the configuration.

use std::collections::BTreeMap;

use msm_rtsp::auth::BasicPolicy;
use msm_rtsp::url::{Host, ResourceUrl, Scheme, SourceUrl};

use super::SourceRoute;
use crate::config::{ConfigError, PullConfig};

/// Names and their sources, in order of the names.
#[derive(Debug, Clone, Default)]
pub struct FixedResolver {
    routes: BTreeMap<String, SourceRoute>,
}

impl FixedResolver {
    /// Checks the configuration.
    ///
    /// # Errors
    /// A URL that is not one, a name that is given twice or that no URL can carry.
    pub fn new(pulls: &[PullConfig]) -> Result<Self, ConfigError> {
        let mut routes = BTreeMap::new();
        for pull in pulls {
            let name = canonical_name(&pull.name)?;
            let route = route(&name, pull)?;
            if routes.insert(name, route).is_some() {
                return Err(ConfigError::PullName(pull.name.clone()));
            }
        }
        Ok(Self { routes })
    }

    /// The source of `name`.
    pub fn resolve(&self, name: &str) -> Option<&SourceRoute> {
        self.routes.get(name)
    }

    /// Every name with its source.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SourceRoute)> {
        self.routes.iter().map(|(name, route)| (name.as_str(), route))
    }
}

/// The name as it comes out of a request-URI.
fn canonical_name(name: &str) -> Result<String, ConfigError> {
    let invalid = || ConfigError::Name(name.to_owned());
    let url = ResourceUrl::parse(&format!("/{}", name.trim_matches('/'))).map_err(|_| invalid())?;
    if url.name.is_empty() || url.query.is_some() || url.track.is_some() {
        return Err(invalid());
    }
    Ok(url.name)
}

fn route(name: &str, pull: &PullConfig) -> Result<SourceRoute, ConfigError> {
    let invalid = |why: String| ConfigError::PullUrl { name: name.to_owned(), why };
    let url = SourceUrl::parse(&pull.url).map_err(|error| invalid(error.to_string()))?;
    if url.scheme != Scheme::Rtsp {
        return Err(invalid("rtsps is not supported".to_owned()));
    }
    let host = match &url.authority.host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    };
    Ok(SourceRoute {
        host,
        port: url.port(),
        url: url.to_string(),
        credentials: pull.credentials.clone().or_else(|| url.credentials.clone()),
        basic: if pull.basic { BasicPolicy::Allow } else { BasicPolicy::Refuse },
        transport: pull.transport,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_pull_url_are_taken_out_of_it() {
        let pull = PullConfig::new("cam", "rtsp://admin:s3cret@192.0.2.1:8554/live?x=1");
        let resolver = FixedResolver::new(&[pull]).unwrap();
        let route = resolver.resolve("cam").unwrap();
        assert_eq!(route.url, "rtsp://192.0.2.1:8554/live?x=1");
        assert_eq!((route.host.as_str(), route.port), ("192.0.2.1", 8554));
        assert_eq!(route.credentials.as_ref().unwrap().user(), "admin");
    }

    #[test]
    fn an_ipv6_host_has_no_brackets() {
        let resolver = FixedResolver::new(&[PullConfig::new("/a/b/", "rtsp://[2001:db8::1]/x")]).unwrap();
        let route = resolver.resolve("a/b").unwrap();
        assert_eq!((route.host.as_str(), route.port), ("2001:db8::1", 554));
    }

    #[test]
    fn an_error_does_not_repeat_the_password() {
        let error = FixedResolver::new(&[PullConfig::new("cam", "http://u:s3cret@h/")]).unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn one_name_for_two_cameras_is_refused() {
        let pulls = [PullConfig::new("cam", "rtsp://a/"), PullConfig::new("/cam", "rtsp://b/")];
        assert!(matches!(FixedResolver::new(&pulls), Err(ConfigError::PullName(_))));
    }
}
