"""HTTP below the routes: connections, bodies, answers."""
