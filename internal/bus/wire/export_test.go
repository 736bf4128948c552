package wire

var RouteOf = routeOf
