# Only for cimport.
