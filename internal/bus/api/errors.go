package api

// Names of errors that the D-Bus specification and systemd have.
const (
	ErrorAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	ErrorFailed           = "org.freedesktop.DBus.Error.Failed"
	ErrorInteractive      = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	ErrorInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	ErrorLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
	ErrorPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
	ErrorUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	ErrorUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	ErrorUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	ErrorUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
)

// Names of our own.
const (
	ErrorAlreadyDraining  = ErrorPrefix + "AlreadyDraining"
	ErrorExiting          = ErrorPrefix + "Exiting"
	ErrorNoSuchConnection = ErrorPrefix + "NoSuchConnection"
	ErrorNotDraining      = ErrorPrefix + "NotDraining"
	ErrorNotSubscribed    = ErrorPrefix + "NotSubscribed"
)
