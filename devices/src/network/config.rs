//! **The command line's word for a network**, and opening what it names.
//!
//! ```text
//! user[,resolver=ADDRESS[:PORT]][,forward=(tcp|udp):[ADDRESS:]PORT-[ADDRESS]:PORT]...
//! tap=NAME
//! socket=PATH
//! ```
//! A forward goes from the host's port before the dash to the guest's after it.

use super::user::addresses::{GUEST, is_guests};
use super::{Network, socket, tap, user};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;

/// Which network a device is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkConfig {
    /// A network of its own, with a gateway.
    User(UserConfig),
    /// An interface of the host's.
    Tap(String),
    /// A Unix socket.
    Socket(PathBuf),
}

/// What can be chosen about a user network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserConfig {
    /// The ports of the host's at which the guest can be reached.
    pub forwards: Vec<Forward>,
    /// Who answers the guest's questions about names; without, whoever answers the host's.
    pub resolver: Option<SocketAddr>,
}

/// A port of the host's whose callers the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where the guest does.
    pub guest: SocketAddrV4,
}

/// What a forwarded port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Why a network's description isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing that starts like this exists.
    #[error("network {0:?}: there are `user`, `tap=NAME` and `socket=PATH`")]
    Kind(String),
    /// The user network has no such option.
    #[error("network user: option {0:?}: there are `forward=tcp:8080-:80` and `resolver=ADDRESS`")]
    Option(String),
    /// A forward that isn't one.
    #[error(
        "forward {forward:?}: {wrong}; right would be `tcp:8080-:80`, or `udp:127.0.0.1:5353-10.0.2.15:53`"
    )]
    Forward {
        /// It.
        forward: String,
        /// What about it is wrong.
        wrong: String,
    },
    /// A resolver that isn't an address.
    #[error(
        "resolver {0:?}: it is an address, with a port if that isn't 53: `9.9.9.9`, `127.0.0.1:5353` or `[::1]:53`"
    )]
    Resolver(String),
    /// No interface is called so.
    #[error(
        "tap {0:?}: an interface's name has 1 to 15 bytes, and no blank or slash among them: `tap0`"
    )]
    Interface(String),
    /// No socket can be there.
    #[error("socket {path:?}: the path of a socket has 1 to {longest} bytes")]
    Path {
        /// It.
        path: String,
        /// What the system has room for.
        longest: usize,
    },
}

/// Why a network couldn't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host's end of a forward can't be had.
    #[error("can't listen on {host} to forward it to the guest's {guest}: {source}")]
    Forward {
        /// The host's end.
        host: SocketAddr,
        /// The guest's.
        guest: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// TAP devices can't be used here.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// The socket can't.
    #[error("socket {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host can't give what the network's thread needs.
    #[error("can't start the network's thread: {0}")]
    Thread(#[source] io::Error),
}

impl NetworkConfig {
    /// Opens the network.
    ///
    /// # Errors
    /// The host refuses something that it needs; the error says what, and what to do.
    pub fn open(&self) -> Result<Box<dyn Network>, OpenError> {
        Ok(match self {
            NetworkConfig::User(config) => user::open(config)?,
            NetworkConfig::Tap(name) => tap::open(name)?,
            NetworkConfig::Socket(path) => socket::open(path)
                .map_err(|source| OpenError::Socket { path: path.clone(), source })?,
        })
    }
}

impl FromStr for NetworkConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<NetworkConfig, ConfigError> {
        if let Some(name) = text.strip_prefix("tap=") {
            return interface(name).map(NetworkConfig::Tap);
        }
        // A path may have commas in it, so it is all the rest.
        if let Some(path) = text.strip_prefix("socket=") {
            return socket_path(path).map(NetworkConfig::Socket);
        }
        match text.split_once(',') {
            None if text == "user" => Ok(NetworkConfig::User(UserConfig::default())),
            Some(("user", options)) => user_options(options).map(NetworkConfig::User),
            _ => Err(ConfigError::Kind(text.to_owned())),
        }
    }
}

fn interface(name: &str) -> Result<String, ConfigError> {
    // As the kernel judges them: dev_valid_name.
    let valid = (1..=tap::LONGEST_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if valid { Ok(name.to_owned()) } else { Err(ConfigError::Interface(name.to_owned())) }
}

fn socket_path(path: &str) -> Result<PathBuf, ConfigError> {
    let longest = socket::LONGEST_PATH;
    if (1..=longest).contains(&path.len()) && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(ConfigError::Path { path: path.to_owned(), longest })
    }
}

fn user_options(options: &str) -> Result<UserConfig, ConfigError> {
    let mut config = UserConfig::default();
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("forward", forward)) => config.forwards.push(forward.parse()?),
            Some(("resolver", address)) => config.resolver = Some(resolver(address)?),
            _ => return Err(ConfigError::Option(option.to_owned())),
        }
    }
    Ok(config)
}

fn resolver(text: &str) -> Result<SocketAddr, ConfigError> {
    let with_port = || text.parse::<SocketAddr>().ok();
    let without = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    let usable = |address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified();
    with_port()
        .or_else(without)
        .filter(usable)
        .ok_or_else(|| ConfigError::Resolver(text.to_owned()))
}

impl FromStr for Forward {
    type Err = ConfigError;

    fn from_str(forward: &str) -> Result<Forward, ConfigError> {
        let because = |wrong: String| ConfigError::Forward { forward: forward.to_owned(), wrong };
        let (protocol, ends) = forward
            .split_once(':')
            .ok_or_else(|| because("it doesn't say `tcp:` or `udp:` first".to_owned()))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(because(format!("protocol {other:?} is neither `tcp` nor `udp`"))),
        };
        let (host, guest) = ends
            .split_once('-')
            .ok_or_else(|| because("no dash parts the host's end from the guest's".into()))?;
        Ok(Forward {
            protocol,
            host: host_end(host).map_err(because)?,
            guest: guest_end(guest).map_err(because)?,
        })
    }
}

/// `8080`, `127.0.0.1:8080` or `[::1]:8080`.
fn host_end(text: &str) -> Result<SocketAddr, String> {
    if text.contains(':') {
        let address = text
            .parse::<SocketAddr>()
            .map_err(|_| format!("{text:?} is no address and port of the host's"))?;
        return if address.port() == 0 { Err("0 is no port".to_owned()) } else { Ok(address) };
    }
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port(text)?)))
}

/// `:80` or `10.0.2.15:80`.
fn guest_end(text: &str) -> Result<SocketAddrV4, String> {
    let (address, number) = text
        .split_once(':')
        .ok_or_else(|| format!("the guest's end {text:?} lacks the colon before its port"))?;
    let address = if address.is_empty() {
        GUEST
    } else {
        address.parse().map_err(|_| format!("{address:?} is no address of the guest's"))?
    };
    if !is_guests(address) {
        return Err(format!(
            "{address} is not among the guest's addresses, 10.0.2.4 to 10.0.2.254"
        ));
    }
    Ok(SocketAddrV4::new(address, port(number)?))
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(format!("{text:?} is no port, which is from 1 to 65535")),
    }
}

impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkConfig::User(config) => {
                f.write_str("user")?;
                config
                    .resolver
                    .iter()
                    .try_for_each(|resolver| write!(f, ",resolver={resolver}"))?;
                config.forwards.iter().try_for_each(|forward| write!(f, ",forward={forward}"))
            }
            NetworkConfig::Tap(name) => write!(f, "tap={name}"),
            NetworkConfig::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.protocol, self.host, self.guest)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}
