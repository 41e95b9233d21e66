//! Fabric services state machine over a Catalog, and the link to them that hosts and units keep. Depends on wire and session.
