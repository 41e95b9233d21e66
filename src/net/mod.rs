//! Interfaces and AF_PACKET sockets; knows no protocol.
