"""What goes over the wire: subjects, frames, connections, the request client, the service side, discovery."""
