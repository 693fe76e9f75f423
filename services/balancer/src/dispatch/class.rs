//! How the requests of one route are treated beside those of the app's other routes. Plain data.

/// Which requests go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// How a route's requests are treated beside those of the app's other routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    pub priority: Priority,
    /// Which of the app's reserves they may use.
    pub reserve: Option<usize>,
}
